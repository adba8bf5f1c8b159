"""scikit-learn's handwritten digits as a TFDS data set: 1,797 real 8x8 scans, prepared without network or TensorFlow."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """The test half of UCI's Optical Recognition of Handwritten Digits, in its original order.

    Grey levels 0..16 are scaled to 0..255. The last 500 scans are the test split; the order follows the writers, so
    most of them were written by hands that the training split has not seen.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # An Image feature would need TensorFlow to encode it; 64 bytes are better off as they are.
        features = {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        return {
            "train": self._generate_examples(slice(0, 1297)),
            "test": self._generate_examples(slice(1297, 1797)),
        }

    def _generate_examples(self, part: slice) -> Iterator:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        for index in range(part.start, part.stop):
            yield index, {"image": images[index], "label": int(labels[index])}

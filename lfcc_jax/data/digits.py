"""scikit-learn's digits as a TFDS data set: 1,797 scans of 8 x 8 pixels, prepared without network or TensorFlow."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """The test half of UCI's Optical Recognition of Handwritten Digits, as scikit-learn carries it.

    Gray levels 0..16 are scaled to 0..255. The test split is 500 scans drawn at random, with a fixed seed; the other
    1,297 are the training split.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # Encoding an Image feature requires TensorFlow.
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
            "train": self._generate_examples(slice(500, None)),
            "test": self._generate_examples(slice(0, 500)),
        }

    def _generate_examples(self, part: slice) -> Iterator:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        # RandomState is frozen, so the split does not depend on the version of numpy.
        for index in np.random.RandomState(0).permutation(len(labels))[part]:
            yield int(index), {"image": images[index], "label": int(labels[index])}

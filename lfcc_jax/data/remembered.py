"""Decoded images that are kept in memory, so that each is read once a run and not once an epoch."""

from typing import Any

import numpy as np

from lfcc_jax.data.source import Source

# What the images of one split may take, in bytes: six times all of CIFAR-100.
_LIMIT = 2**30


def remembered(source: Source) -> Source:
    """Returns a source that keeps the images that were read; the same one if they vary in size or are too many."""
    count = len(source.examples)
    if not source.image_size or count * source.image_size**2 * source.image_channels > _LIMIT:
        return source
    return source._replace(examples=_Examples(source))


class _Examples:
    """Random access to `image` and `label` of a source whose images have one size. Threads may share it."""

    def __init__(self, source: Source):
        self._examples = source.examples
        count, size = len(source.examples), source.image_size
        # Memory that was not written to yet is not taken yet.
        self._images = np.empty((count, size, size, source.image_channels), np.uint8)
        self._labels = np.empty(count, np.int32)
        self._known = np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self._known[index]:
            example = self._examples[index]
            self._images[index], self._labels[index] = example["image"], example["label"]
            self._known[index] = True  # last: another thread may look
        image = self._images[index]
        image.setflags(write=False)  # of this view
        return {"image": image, "label": self._labels[index]}

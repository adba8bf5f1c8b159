"""Keeps small data sets in memory. Every example is read, and thus checked, once before training."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from lfcc_jax.data.examples import read
from lfcc_jax.data.source import Source

# Maximum size of the decoded images of one split, in bytes: six times CIFAR-100.
LIMIT = 2**30


def fits_in_memory(source: Source) -> bool:
    """Returns whether all images have the same size, take at most 1 GiB, and can be read."""
    return (
        not source.skip_unreadable and 0 < len(source.examples) * source.image_size**2 * source.image_channels <= LIMIT
    )


def in_memory(source: Source) -> Source:
    """Returns the same source with its examples in memory.

    Raises:
      UserError: for the first example that `examples.read` rejects.
    """
    return source._replace(examples=_Arrays(read_all(source)))


def read_all(source: Source) -> dict[str, np.ndarray]:
    """Returns all examples of a source whose images have the same size.

    Returns:
      `image` uint8 `[examples, H, W, C]`, and `label` int32 `[examples]` if there are classes.

    Raises:
      UserError: for the first example that `examples.read` rejects.
    """
    if isinstance(source.examples, _Arrays):
        return source.examples.arrays
    count, size = len(source.examples), source.image_size
    images = np.empty((count, size, size, source.image_channels), np.uint8)
    labels = np.empty(count, np.int32)
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)
    examples = grain.MapDataset.range(count).map(lambda index: read(source, index)).to_iter_dataset(options)
    for i, example in enumerate(examples):
        images[i], labels[i] = example["image"], example.get("label", 0)
    return {"image": images} | ({"label": labels} if source.num_classes else {})


class _Arrays(Sequence):
    """Random access to examples in read-only arrays."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        for array in arrays.values():
            array.setflags(write=False)
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}

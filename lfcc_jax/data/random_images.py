"""Images of random pixels, to try a config or to time a step without a data set. There is nothing to learn."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lfcc_jax.errors import UserError

_NAME = re.compile(r"noise_([1-9]\d*)x([1-9]\d*)")
_MOST_CLASSES, _LARGEST = 100_000, 1024


class Noise(Sequence):
    """Color images of uniform random pixels, each with a random class. Each is made when it is read.

    Args:
      count: Number of images.
      num_classes: Number of classes.
      image_size: Height and width, in pixels.
    """

    def __init__(self, count: int, num_classes: int, image_size: int):
        self._count, self._classes, self._size = count, num_classes, image_size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(int(index))
        image = rng.integers(0, 256, (self._size, self._size, 3), np.uint8)
        return {"image": image, "label": int(rng.integers(self._classes))}


def parse_name(name: str) -> tuple[int, int] | None:
    """Returns the number of classes and the image size that `noise_100x32` stands for, or None for another name.

    Raises:
      UserError: for more than 100,000 classes or 1,024 pixels.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    classes, size = int(found[1]), int(found[2])
    if classes > _MOST_CLASSES or size > _LARGEST:
        raise UserError(
            f"data set '{name}': noise has at most {_MOST_CLASSES:,} classes and {_LARGEST:,} pixels a side, "
            f"got {classes:,} and {size:,}"
        )
    return classes, size

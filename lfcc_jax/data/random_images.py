"""Images of random pixels, to test a config or to time a step without a data set."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lfcc_jax.errors import UserError

_NAME = re.compile(r"noise_([1-9]\d*)x([1-9]\d*)")
_MOST_CLASSES, _LARGEST = 100_000, 1024


class Noise(Sequence):
    """Color images of uniform random pixels with random labels, generated when they are read.

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
    """Parses a name like `noise_100x32` into the number of classes and the image size; returns None for other names.

    Raises:
      UserError: if there are more than 100,000 classes or 1,024 pixels per side.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    classes, size = int(match[1]), int(match[2])
    if classes > _MOST_CLASSES or size > _LARGEST:
        raise UserError(
            f"data set '{name}': noise has at most {_MOST_CLASSES:,} classes and {_LARGEST:,} pixels a side, "
            f"got {classes:,} and {size:,}"
        )
    return classes, size

"""Images of random pixels, to try a config or to time a step without a data set. There is nothing to learn."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_NAME = re.compile(r"noise_([1-9]\d*)x([1-9]\d*)")


class Noise(Sequence):
    """Colour images of uniform random pixels, each with a random class. Each is made when it is read.

    Args:
      count: how many images.
      num_classes: labels are below it.
      image_size: height and width, in pixels.
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
    """Returns the number of classes and the image size that `noise_100x32` stands for, or None for another name."""
    found = _NAME.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2]))

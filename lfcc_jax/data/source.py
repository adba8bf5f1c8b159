"""One split of a data set, however its images are stored."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Source(NamedTuple):
    """One split of a data set.

    Attributes:
      examples: Random access to dicts with `image` (uint8 `[height, width, channels]`, or encoded bytes) and, if there
        are classes, `label`. `examples.read` checks them.
      num_classes: Labels are in `[0, num_classes)`; 0 without labels.
      image_size: Height and width of the images, in pixels; 0 if they vary.
      image_channels: 3 for color, 1 for grayscale.
      name: Name of the data set.
      split: Name of the split, in TFDS's notation.
      class_names: Name of each class; empty if they have none.
      upright: Whether images are rotated as their EXIF orientation says.
      skip_unreadable: Whether the next image takes the place of one that cannot be read.
    """

    examples: Sequence[dict[str, Any]]
    num_classes: int
    image_size: int
    image_channels: int
    name: str = ""
    split: str = ""
    class_names: tuple[str, ...] = ()
    upright: bool = False
    skip_unreadable: bool = False

    def where(self, index: int) -> str:
        """Returns what to call an example in messages: its file if it has one, else its split and its index."""
        path = getattr(self.examples, "path", None)
        return path(index) if path else f"data set '{self.name}', split '{self.split}', example {index}"

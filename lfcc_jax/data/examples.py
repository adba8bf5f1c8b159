"""Reads and checks one example. All pipelines read examples through this module."""

import contextlib
from typing import Any

import numpy as np
from PIL import Image

from lfcc_jax import storage
from lfcc_jax.data.host_crops import decode
from lfcc_jax.data.source import Source
from lfcc_jax.errors import UserError

Example = dict[str, Any]
# A longer row of unreadable images means that the disk or the decoder fails.
_MOST_SKIPPED = 100


def read(source: Source, index: int) -> Example:
    """Returns one example, decoded and checked.

    Args:
      source: The split to read from.
      index: Position in the split, from 0.

    Returns:
      `image`: uint8 `[image_size, image_size, channels]`, or, if images vary in size, a `PIL.Image.Image`; `label`:
      int32 in `[0, num_classes)`, absent if the source has no classes; `index`: int32. If `source.skip_unreadable`, the
      next example that can be read takes the place of one that cannot, with its own index, and `asked_for` is `index`.

    Raises:
      UserError: if the example cannot be read or decoded, its image is not uint8 or not of the source's shape, or its
        label is not a class. The message names the file, or the data set, the split and the example.
    """
    if not source.skip_unreadable:
        return _read(source, index)
    count = len(source.examples)
    for offset in range(min(count, _MOST_SKIPPED + 1)):
        with contextlib.suppress(UserError):
            return _read(source, (index + offset) % count) | {"asked_for": np.int32(index)}
    raise UserError(f"{source.where(index)} and {offset} images after it cannot be read")


def _read(source: Source, index: int) -> Example:
    try:
        example = source.examples[index]
        image = _image(source, example["image"])
        label = {"label": _label(source, example["label"])} if source.num_classes else {}
    except Exception as error:  # readers and decoders may raise anything
        prefix = "" if isinstance(error, UserError) else f"cannot be read: {type(error).__name__}: "
        remedy = "; config.data.skip_unreadable=True leaves such images out" if source.upright else ""
        raise UserError(f"{source.where(index)}: {prefix}{storage.one_line(error)}{remedy}") from error
    return {"image": image, **label, "index": np.int32(index)}


def _image(source: Source, image: Any) -> Any:
    if isinstance(image, bytes):
        image = decode(image, source.image_channels, source.upright)
        if not source.image_size:
            return image
        image = np.asarray(image)
        image = image if image.ndim == 3 else image[:, :, None]
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise UserError(f"the image must be uint8, got {image.dtype}")
    size = source.image_size
    expected = (size or "height", size or "width", source.image_channels)
    if image.ndim != 3 or image.shape[2] != expected[2] or (size and image.shape[:2] != expected[:2]) or not image.size:
        raise UserError(f"the image must have shape ({', '.join(map(str, expected))}), got {image.shape}")
    return image if size else Image.fromarray(image[:, :, 0] if expected[2] == 1 else image)


def _label(source: Source, label: Any) -> np.int32:
    label = np.asarray(label)
    if label.ndim or label.dtype.kind not in "iu":
        raise UserError(f"the label must be one integer, got {label.tolist()!r:.100}")
    if not 0 <= label < source.num_classes:
        raise UserError(f"the label must be in [0, {source.num_classes}), got {label}")
    return np.int32(label)

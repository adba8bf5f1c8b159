"""Where images come from: a TFDS data set by name or by directory, read with random access and no TensorFlow."""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from lfcc_jax.errors import UserError, unknown

_OURS = ("digits",)


class Source(NamedTuple):
    """One split of a data set.

    Attributes:
      examples: random access to dicts with `image` (uint8, `[height, width, channels]`) and `label`.
      num_classes: labels are in `[0, num_classes)`.
      image_size: height and width of the images, in pixels.
      image_channels: 3 for colour, 1 for grey.
    """

    examples: Sequence[dict[str, Any]]
    num_classes: int
    image_size: int
    image_channels: int


def open_source(name: str, split: str, data_dir: str = "") -> Source:
    """Returns one split of a data set, preparing it first if this package can.

    Args:
      name: `digits`; the name of a data set prepared under `data_dir`; or the path of a prepared directory, the one
        that holds `dataset_info.json`.
      split: in TFDS's notation, for example `test` or `train[:20%]`.
      data_dir: where prepared data sets lie; TFDS's own default if empty.

    Returns:
      The source.

    Raises:
      UserError: if there is no such data set or split, or its images have no fixed size.
    """
    builder = _builder(name, data_dir)
    base = re.match(r"\w*", split).group()
    if base not in (*builder.info.splits, "all"):
        raise unknown("split", base, builder.info.splits, f"data set '{name}'")
    try:
        examples = builder.as_data_source(split=split)
        count = len(examples)
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(f"data set '{name}': split '{split}' cannot be read: {' '.join(str(error).split())}") from error
    if not count:
        raise UserError(f"data set '{name}': split '{split}' is empty")
    shape = builder.info.features["image"].shape
    if len(shape) != 3 or None in shape or shape[0] != shape[1]:
        raise UserError(f"data set '{name}' has images of shape {shape}; a fixed square size is needed")
    return Source(examples, builder.info.features["label"].num_classes, shape[0], shape[2])


class Splits(NamedTuple):
    """What a run reads.

    Attributes:
      train: the images to train on.
      test: the images to evaluate on.
      max_shift: augmentation: how far training images are shifted, in pixels.
    """

    train: Source
    test: Source
    max_shift: int


def open_splits(
    name: str, train_split: str = "train", test_split: str = "test", data_dir: str = "", max_shift: int = 0
) -> Splits:
    """Returns training and test data: the `data` block of a config. See `open_source` and `train_batches`.

    Raises:
      UserError: as `open_source`.
    """
    if not isinstance(max_shift, int) or max_shift < 0:
        raise UserError(f"config.data.max_shift: {max_shift} will not do; a whole number of pixels will")
    return Splits(open_source(name, train_split, data_dir), open_source(name, test_split, data_dir), max_shift)


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    if name == "digits":
        from lfcc_jax.data.digits import Digits

        builder = Digits(data_dir=data_dir or None, file_format="array_record")
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
        except OSError:  # another process was faster
            builder = Digits(data_dir=data_dir or None, file_format="array_record")
            if not builder.is_prepared():
                raise
        return builder
    if name and (Path(name).expanduser() / "dataset_info.json").exists():
        return tfds.builder_from_directory(Path(name).expanduser())
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    # NAME/VERSION or NAME/CONFIG/VERSION; a deeper look would walk through all that was ever downloaded there.
    prepared = [path for depth in ("*/*", "*/*/*") for path in sorted(root.glob(f"{depth}/dataset_info.json"))]
    mine = [path.parent for path in prepared if path.relative_to(root).parts[0] == name]
    if len({path.parent for path in mine}) > 1:
        raise UserError(f"data set '{name}' has several forms; give the path of one: {', '.join(map(str, mine))}")
    if mine:
        return tfds.builder_from_directory(max(mine, key=lambda path: tfds.core.Version(path.name)))
    raise unknown("data set", name, {*_OURS, *(p.relative_to(root).parts[0] for p in prepared)}, f"data_dir {root}")

"""Where images come from: a TFDS data set by name or by directory, read with random access and no TensorFlow."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from etils import epath

from lfcc_jax import storage
from lfcc_jax.data import noise
from lfcc_jax.errors import UserError, unknown

_OURS = ("digits",)
# How many images of noise there are in each split.
_NOISE = {"train": 1024, "test": 256}


class Source(NamedTuple):
    """One split of a data set.

    Attributes:
      examples: random access to dicts with `image` (uint8 `[height, width, channels]`; or the encoded bytes, if images
        vary in size) and `label`.
      num_classes: labels are in `[0, num_classes)`.
      image_size: height and width of the images, in pixels; 0 if they vary.
      image_channels: 3 for colour, 1 for grey.
      name: of the data set.
    """

    examples: Sequence[dict[str, Any]]
    num_classes: int
    image_size: int
    image_channels: int
    name: str = ""


def open_source(name: str, split: str, data_dir: str = "") -> Source:
    """Returns one split of a data set, preparing it first if this package can.

    Args:
      name: `digits`; the name of a data set prepared under `data_dir`; the path of a prepared directory, the one that
        holds `dataset_info.json`; or `noise_100x32` for random images, of 100 classes and 32 pixels.
      split: in TFDS's notation, for example `test` or `train[:20%]`.
      data_dir: where prepared data sets lie; TFDS's own default if empty.

    Returns:
      The source.

    Raises:
      UserError: if there is no such data set or split, or its images are not what a network takes.
    """
    if sizes := noise.parse_name(name):
        if split not in _NOISE:
            raise unknown("split", split, _NOISE, f"data set '{name}'")
        return Source(noise.Noise(_NOISE[split], *sizes), *sizes, 3, name)
    for key, path in (("name", name), ("data_dir", data_dir)):
        if storage.is_remote(path):
            raise UserError(
                f"config.data.{key} must be on a local disk, since ArrayRecord cannot be read from a bucket, got "
                f"'{path}'; copy it to the disk of every host: gcloud storage cp --recursive {path} DIRECTORY"
            )
    builder = _builder(name, data_dir)
    base = re.match(r"\w*", split).group()
    if base not in (*builder.info.splits, "all"):
        raise unknown("split", base, builder.info.splits, f"data set '{name}'")
    shape = builder.info.features["image"].shape
    varies = None in shape[:2] or shape[0] != shape[1]
    decoders = {"image": tfds.decode.SkipDecoding()} if varies else None
    try:
        examples = builder.as_data_source(split=split, decoders=decoders)
        count = len(examples)
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(f"data set '{name}': split '{split}' cannot be read: {' '.join(str(error).split())}") from error
    if not count:
        raise UserError(f"data set '{name}': split '{split}' is empty")
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise UserError(f"data set '{name}' has images of shape {shape}; [height, width, 1 or 3] is needed")
    classes, size = builder.info.features["label"].num_classes, 0 if varies else shape[0]
    return Source(examples, classes, size, shape[2], builder.info.name)


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
    if name and (epath.Path(name).expanduser() / "dataset_info.json").exists():
        return tfds.builder_from_directory(epath.Path(name).expanduser())
    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    # NAME/VERSION or NAME/CONFIG/VERSION; a deeper look would walk through all that was ever downloaded there.
    prepared = [path for depth in ("*/*", "*/*/*") for path in sorted(root.glob(f"{depth}/dataset_info.json"))]
    mine = [path.parent for path in prepared if path.relative_to(root).parts[0] == name]
    if len({path.parent for path in mine}) > 1:
        raise UserError(f"data set '{name}' has several forms; give the path of one: {', '.join(map(str, mine))}")
    if mine:
        return tfds.builder_from_directory(max(mine, key=lambda path: tfds.core.Version(path.name)))
    known = unknown("data set", name, {*_OURS, *(p.relative_to(root).parts[0] for p in prepared)}, f"data_dir {root}")
    raise UserError(f"{known} TFDS's are made by python -m lfcc_jax.data.prepare NAME.")

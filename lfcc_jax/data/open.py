"""Opens a data set by its name: TFDS, a folder of images, a CSV file, Hugging Face, or noise."""

import os
from collections.abc import Sequence

from lfcc_jax import storage
from lfcc_jax.data import files, hugging_face, random_images
from lfcc_jax.data.source import Source
from lfcc_jax.data.tfds_sets import open_tfds, prepared_directory
from lfcc_jax.errors import UserError, unknown

# Number of noise images in each split.
_NOISE = {"train": 1024, "test": 256}
_BY_PREFIX = {"folder": files.open_folder, "csv": files.open_csv, "hf": hugging_face.open_hugging_face}


def open_source(
    name: str, split: str, data_dir: str = "", *, labels: bool = True, skip_unreadable: bool = False
) -> Source:
    """Returns one split of a data set; see `open_sources`."""
    return open_sources(name, [split], data_dir, labels=labels, skip_unreadable=skip_unreadable)[0]


def open_sources(
    name: str, splits: Sequence[str], data_dir: str = "", *, labels: bool = True, skip_unreadable: bool = False
) -> list[Source]:
    """Returns some splits of a data set.

    ==================== ===========================================================================================
    `folder:PATH`        image files, in class folders or without labels; see `files.open_folder`
    `csv:FILE`           image files that are listed with their labels; see `files.open_csv`
    `hf:NAME`            a data set of Hugging Face; see `hugging_face.open_hugging_face`
    `noise_100x32`       random images of 100 classes and 32 pixels
    other names          a prepared TFDS data set, or its directory; `digits` is prepared; see `tfds_sets.open_tfds`
    ==================== ===========================================================================================

    Args:
      name: Name of the data set.
      splits: Splits in TFDS's notation, for example `test` or `train[:20%]`.
      data_dir: Directory of prepared TFDS data sets; TFDS's default if empty.
      labels: Whether to use the labels, if there are any.
      skip_unreadable: Whether to leave out images that cannot be read; not for TFDS.

    Raises:
      UserError: if the data set or split does not exist or is damaged; see the functions above.
    """
    prefix, _, rest = name.partition(":")
    if prefix in _BY_PREFIX and rest:
        return _BY_PREFIX[prefix](rest, splits, labels, skip_unreadable)
    if skip_unreadable:
        raise UserError(f"config.data.skip_unreadable must be False for a data set of TFDS, '{name}'")
    if sizes := random_images.parse_name(name):
        return [_noise(name, split, *sizes, labels) for split in splits]
    return [open_tfds(name, split, data_dir, labels) for split in splits]


def _noise(name: str, split: str, num_classes: int, image_size: int, labels: bool) -> Source:
    if split not in _NOISE:
        raise unknown("split", split, _NOISE, f"data set '{name}'")
    examples = random_images.Noise(_NOISE[split], num_classes, image_size)
    return Source(examples, num_classes if labels else 0, image_size, 3, name, split)


def full_name(name: str) -> str:
    """Returns the name of a data set with the prefix and the full path of a folder or CSV file, which may lack both.

    Examples:
      >>> full_name("/data/photos"), full_name("/data/list.csv"), full_name("cifar100")
      ('folder:/data/photos', 'csv:/data/list.csv', 'cifar100')
    """
    prefix, _, rest = name.partition(":")
    if prefix in ("folder", "csv") and not storage.is_remote(rest):
        return f"{prefix}:{os.path.abspath(os.path.expanduser(rest))}"
    path = os.path.abspath(os.path.expanduser(name))
    if name.endswith(".csv"):
        return f"csv:{path}"
    is_path = os.path.isdir(path) or name.startswith((".", "/", "~"))
    return f"folder:{path}" if is_path and not prepared_directory(path) else name

"""Opens TFDS data sets by name or by directory, with random access and without TensorFlow."""

import concurrent.futures
import contextlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from lfcc_jax import storage
from lfcc_jax.data.source import Source
from lfcc_jax.errors import UserError, unknown

_BUILT_IN = ("digits",)


def open_tfds(name: str, split: str, data_dir: str = "", labels: bool = True) -> Source:
    """Returns one split of a TFDS data set. `digits` is prepared if necessary.

    Args:
      name: `digits`; the name of a data set prepared in `data_dir`; or the path of a prepared directory that contains
        `dataset_info.json`, or of the one above, for the newest version.
      split: Split in TFDS's notation, for example `test` or `train[:20%]`.
      data_dir: Directory of prepared data sets; TFDS's default if empty.
      labels: Whether to use the feature `label`.

    Returns:
      The source.

    Raises:
      UserError: if the data set or split does not exist; if its description is damaged, its images are not uint8 with 1
        or 3 channels, or its labels are not classes; or if a shard is missing, damaged, or has the wrong number of
        examples. Examples themselves are checked when they are read.
    """
    for key, path in (("name", name), ("data_dir", data_dir)):
        if storage.is_remote(path):
            raise UserError(
                f"config.data.{key} must be on a local disk, since ArrayRecord cannot be read from a bucket, got "
                f"'{path}'; copy it to the disk of every host: gcloud storage cp --recursive {path} DIRECTORY"
            )
    builder = _builder(name, data_dir)
    with _user_errors(f"data set '{name}'"):
        base, splits, dataset_name = re.match(r"\w*", split).group(), builder.info.splits, builder.info.name
        size, channels, names, classes = _check_features(builder.info.features, labels)
        for info in splits.values():
            if "/" in info.filename_template.template:
                raise UserError(f"its files must be in its directory, got {info.filename_template.template}")
    if base not in (*splits, "all"):
        raise unknown("split", base, splits, f"data set '{name}'")
    # Images are always decoded by this package, to be independent of installed libraries.
    is_encoded = isinstance(builder.info.features["image"], tfds.features.Image)
    decoders = {"image": tfds.decode.SkipDecoding()} if is_encoded else None
    with _user_errors(f"data set '{name}': split '{split}' cannot be read"):
        if (file_format := builder.info.file_format.value) != "array_record":
            raise UserError(
                f"its files must be in array_record, got {file_format}; see python -m lfcc_jax.data.prepare --help"
            )
        examples = builder.as_data_source(split=split, decoders=decoders)
        if not len(examples):
            raise UserError("it is empty")
        _check_shards(splits[split].file_instructions)
    return Source(examples, classes, size, channels, dataset_name, split, names)


@contextlib.contextmanager
def _user_errors(where: str) -> Iterator[None]:
    """Turns any exception from TFDS into a one-line `UserError`."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{where}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {storage.one_line(error)}"


def _check_features(features: Any, labels: bool) -> tuple[int, int, tuple[str, ...], int]:
    """Returns image size (0 if it varies), image channels, names of classes if they have some, and their number."""
    for name in ("image", "label") if labels else ("image",):
        if name not in features:
            raise UserError(f"there is no feature '{name}'; features: {', '.join(features)}")
    image = features["image"]
    shape, dtype = image.shape, image.np_dtype
    if not isinstance(image, (tfds.features.Image, tfds.features.Tensor)) or dtype != np.uint8:
        raise UserError(f"images must be uint8, got {type(image).__name__} of {getattr(dtype, '__name__', dtype)}")
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
        raise UserError(f"images must have shape (height, width, 1 or 3), got {shape}")
    size = 0 if None in shape[:2] or shape[0] != shape[1] else shape[0]
    if not labels:
        return size, shape[2], (), 0
    label = features["label"]
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise UserError(f"labels must be a ClassLabel with num_classes, got {type(label).__name__}")
    # TFDS names the classes "0", "1", ... if they have no names.
    names = tuple(label.names)
    return size, shape[2], () if names == tuple(map(str, range(len(names)))) else names, label.num_classes


def _check_shards(shards: Sequence[Any]) -> None:
    """Raises unless every file of a split can be opened and has the expected number of examples."""

    def count(shard: Any) -> int | UserError:
        try:
            reader = ArrayRecordReader(str(shard.filename), "readahead_buffer_size:0")
            num_examples = reader.num_records()
            reader.close()  # raises errors from reading the file
        except RuntimeError as error:
            return UserError(f"{shard.filename} is missing or damaged: {storage.one_line(error)}")
        return num_examples

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for shard, num_examples in zip(shards, pool.map(count, shards), strict=True):
            if isinstance(num_examples, UserError):
                raise num_examples
            if num_examples != shard.examples_in_shard:
                raise UserError(
                    f"{shard.filename} has {num_examples} examples, but dataset_info.json says "
                    f"{shard.examples_in_shard}"
                )


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if root.exists() and not root.is_dir():
        raise UserError(f"config.data.data_dir must be a directory, got the file {root}")
    if name == "digits":
        with _user_errors(f"data set 'digits' cannot be prepared in {root}; set config.data.data_dir"):
            return _digits(data_dir)
    if name and (epath.Path(name).expanduser() / "dataset_info.json").exists():
        return _from_directory(epath.Path(name).expanduser())
    # NAME/VERSION or NAME/CONFIG/VERSION. A recursive glob would walk through all downloads.
    prepared = [path for depth in ("*/*", "*/*/*") for path in sorted(root.glob(f"{depth}/dataset_info.json"))]
    matches = [path.parent for path in prepared if path.relative_to(root).parts[0] == name]
    if len({path.parent for path in matches}) > 1:
        raise UserError(f"data set '{name}' has several configs; pass the path of one: {', '.join(map(str, matches))}")
    if matches:
        return _from_directory(_newest(matches))
    if name and (directory := prepared_directory(name)):
        return _from_directory(directory)
    error = unknown(
        "data set", name, {*_BUILT_IN, *(p.relative_to(root).parts[0] for p in prepared)}, f"data_dir {root}"
    )
    if name and epath.Path(name).expanduser().exists():
        prefix = "folder" if epath.Path(name).expanduser().is_dir() else "csv"
        raise UserError(f"{error} For the images of {name}, set config.data.name={prefix}:{name}.")
    raise UserError(
        f"{error} There is no folder '{name}' either. To download a data set of TFDS, run python -m "
        "lfcc_jax.data.prepare NAME."
    )


def prepared_directory(path: epath.PathLike) -> epath.Path | None:
    """Returns `path` if it has `dataset_info.json`; else the newest version of a data set below it, if any."""
    path = epath.Path(path).expanduser()
    if (path / "dataset_info.json").exists():
        return path
    versions = [info.parent for info in path.glob("*/dataset_info.json")]
    versions = [directory for directory in versions if tfds.core.Version.is_valid(directory.name)]
    return _newest(versions) if versions else None


def _newest(versions: Sequence[epath.Path]) -> epath.Path:
    return max(versions, key=lambda directory: tfds.core.Version(directory.name))


def _digits(data_dir: str) -> tfds.core.DatasetBuilder:
    from lfcc_jax.data.digits import Digits

    builder = Digits(data_dir=data_dir or None, file_format="array_record")
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except OSError:  # another process prepared it concurrently
        builder = Digits(data_dir=data_dir or None, file_format="array_record")
        if not builder.is_prepared():
            raise
    return builder


def _from_directory(directory: epath.Path) -> tfds.core.DatasetBuilder:
    with _user_errors(f"data set '{directory}'"):
        # TFDS imports the module of every feature class named in the file.
        if others := [
            name
            for name in _class_names(storage.read_json(directory / "features.json"))
            if not name.startswith("tensorflow_datasets.")
        ]:
            raise UserError(f"features.json must name features of TFDS only, got {others[0]!r:.100}")
        return tfds.builder_from_directory(directory)


def _class_names(node: Any) -> Iterator[str]:
    """Yields all Python classes named in a part of features.json."""
    if isinstance(node, list):
        for item in node:
            yield from _class_names(item)
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            elif key == "json" and isinstance(value, str):
                yield from _class_names(json.loads(value))
            else:
                yield from _class_names(value)

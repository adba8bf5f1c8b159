"""Converts a prepared TFDS data set from TFRecord to ArrayRecord, which allows random access.

Both formats hold the same serialized examples, which are copied unchanged, so TensorFlow is not needed.
"""

import struct
from collections.abc import Callable, Iterator

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from lfcc_jax import storage
from lfcc_jax.errors import UserError

# Each record is preceded by its length and a checksum of the length, and followed by a checksum of its bytes.
_LENGTH, _CHECKSUM = struct.Struct("<Q"), 4


def to_array_record(
    source: epath.PathLike, target: epath.PathLike, progress: Callable[[str], None] = print
) -> epath.Path:
    """Copies a prepared data set to a new directory as ArrayRecord, with the same shards and order.

    Args:
      source: Directory that contains `dataset_info.json`; it may be in a bucket.
      target: New directory on a local disk. It appears only when it is complete.
      progress: Called with a line after each shard.

    Returns:
      `target`.

    Raises:
      UserError: if the source is not a prepared data set in TFRecord, or a shard is missing or truncated (checksums are
        not verified); if the target exists, is in a bucket, or cannot be written.
    """
    if storage.is_remote(target):
        raise UserError(
            f"`--out` must be on a local disk, since ArrayRecord cannot be written to a bucket, got '{target}'"
        )
    source, target = storage.resolve(source, "data"), storage.resolve(target, "--out")
    if not storage.exists(source / "dataset_info.json"):
        raise UserError(f"{source} has no dataset_info.json; give the directory of one version, for example .../5.1.0")
    info = storage.read_json(source / "dataset_info.json")
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise UserError(f"{source} is already in {info['fileFormat']}; only TFRecord is converted")
    if target.exists():
        raise UserError(f"{target} already exists; give another directory")
    storage.check_writable(target, "--out")
    partial = target.parent / f"{target.name}.partial"
    storage.make_directory(partial)
    splits = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
    total, done = sum(map(len, splits.values())), 0
    for split, lengths in splits.items():
        for shard, length in enumerate(lengths):
            suffix = f"{shard:05d}-of-{len(lengths):05d}"
            files = sorted(source.glob(f"*-{split}.tfrecord-{suffix}"))
            if len(files) != 1:
                raise UserError(f"{source} must contain one file *-{split}.tfrecord-{suffix}, found {len(files)}")
            name = files[0].name.replace(".tfrecord-", ".array_record-")
            count = _copy(files[0], partial / name)
            if count != length:
                raise UserError(f"{files[0]} is damaged: expected {length} examples, got {count}")
            done += 1
            progress(f"{done}/{total} shards  {name}")
    for path in source.iterdir():
        if ".tfrecord-" not in path.name and path.name != "dataset_info.json":
            storage.write_bytes(partial / path.name, storage.read_bytes(path))
    storage.write_json(partial / "dataset_info.json", info | {"fileFormat": "array_record"})
    partial.rename(target)
    return target


def _copy(source: epath.Path, target: epath.Path) -> int:
    count = 0
    with storage.errors_in_one_line(f"cannot write {target}"):
        # For random access, each record is a group.
        writer = ArrayRecordWriter(str(target), "group_size:1")
        for record in _tfrecords(source):
            writer.write(record)
            count += 1
        writer.close()
    return count


def _tfrecords(path: epath.Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while header := file.read(_LENGTH.size + _CHECKSUM):
            length = _LENGTH.unpack_from(header)[0] if len(header) == _LENGTH.size + _CHECKSUM else 0
            record = file.read(length)
            if not length or len(record) < length or len(file.read(_CHECKSUM)) < _CHECKSUM:
                raise UserError(f"{path} is damaged: it ends in the middle of a record")
            yield record

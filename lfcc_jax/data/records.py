"""A data set that TFDS has prepared as TFRecord, rewritten as ArrayRecord, which can be read in any order.

Both formats hold the same serialised examples, so they are copied as they are, and TensorFlow is not needed.
"""

import json
import struct
from collections.abc import Callable, Iterator

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from lfcc_jax.errors import UserError

# Before each record its length and a checksum of the length, after it a checksum of its bytes.
_LENGTH, _CHECKSUM = struct.Struct("<Q"), 4


def to_array_record(
    source: epath.PathLike, target: epath.PathLike, progress: Callable[[str], None] = print
) -> epath.Path:
    """Writes a prepared data set's examples, in the same shards and order, into another directory.

    Args:
      source: the directory that holds `dataset_info.json`.
      target: made new, once all is written.
      progress: is told of every shard.

    Returns:
      `target`.

    Raises:
      UserError: if the source is no such directory, or not in TFRecord, or a shard is cut off (checksums are not looked
        at); or if the target exists.
    """
    source, target = (epath.Path(path).expanduser().resolve() for path in (source, target))
    if not (source / "dataset_info.json").exists():
        raise UserError(f"{source} has no dataset_info.json; give the directory of one version, for example .../5.1.0")
    info = json.loads((source / "dataset_info.json").read_text())
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise UserError(f"{source} is in {info['fileFormat']} already; only TFRecord is converted")
    if target.exists():
        raise UserError(f"{target} exists already; give another directory")
    partial = target.parent / f"{target.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    splits = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
    total, done = sum(map(len, splits.values())), 0
    for split, lengths in splits.items():
        for shard, length in enumerate(lengths):
            place = f"{shard:05d}-of-{len(lengths):05d}"
            found = sorted(source.glob(f"*-{split}.tfrecord-{place}"))
            if len(found) != 1:
                raise UserError(
                    f"{source}: there should be one file *-{split}.tfrecord-{place}; there are {len(found)}"
                )
            name = found[0].name.replace(".tfrecord-", ".array_record-")
            count = _copy(found[0], partial / name)
            if count != length:
                raise UserError(f"{found[0]} is damaged: it holds {count} examples, and should hold {length}")
            done += 1
            progress(f"{done}/{total} shards  {name}")
    for path in source.iterdir():
        if ".tfrecord-" not in path.name and path.name != "dataset_info.json":
            path.copy(partial / path.name, overwrite=True)
    info["fileFormat"] = "array_record"
    (partial / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    partial.rename(target)
    return target


def _copy(source: epath.Path, target: epath.Path) -> int:
    # Groups of one record are what random access wants.
    writer = ArrayRecordWriter(str(target), "group_size:1")
    count = 0
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

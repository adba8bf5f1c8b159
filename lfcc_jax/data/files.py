"""Image files: those of a folder, with a class per folder or without labels, and those listed in a CSV file."""

import csv
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lfcc_jax import storage
from lfcc_jax.data.host_crops import FORMATS, LARGEST
from lfcc_jax.data.in_memory import LIMIT
from lfcc_jax.data.source import Source
from lfcc_jax.data.splits import Table, classes_of, select
from lfcc_jax.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Folders that make a folder a data set with splits, if `train` is among them.
_SPLITS = ("train", "test", "val", "validation", "valid")
# Number of images of a split whose sizes on disk, and whose headers, are read before training: all, or a random sample.
_CHECKED_SIZES, _CHECKED_HEADERS = 200_000, 10_000


class Files(Sequence):
    """Random access to image files, as their bytes and labels.

    Args:
      root: Directory that the paths are relative to.
      paths: Path of each file.
      labels: `[files]`, or None.
    """

    def __init__(self, root: str, paths: Sequence[str], labels: np.ndarray | None):
        self.root, self._labels = root, labels
        # One string, because worker processes get a copy: a list of a million takes ten times the memory and time.
        encoded = [os.fsencode(path) for path in paths]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.path(index), "rb") as file:
            content = file.read()
        if not content:
            raise UserError("the file is empty")
        return {"image": content} | ({} if self._labels is None else {"label": self._labels[index]})

    def path(self, index: int) -> str:
        """Returns the path of a file."""
        start = self._ends[index - 1] if index else 0
        return os.path.join(self.root, os.fsdecode(self._paths[start : self._ends[index]]))


def open_folder(path: str, splits: Sequence[str], labels: bool, skip_unreadable: bool) -> list[Source]:
    """Returns some splits of a folder of images.

    The folder contains `train` and `test` (or `val`, `validation`), or is split by `splits.select`. In either, each
    folder is a class, named after the folder, with images at any depth; or all images are without labels. Hidden files
    and folders are left out.

    Args:
      path: The folder.
      splits: Each as in `splits.select`.
      labels: Whether to use folders as classes. If False, images at any depth are used without labels.
      skip_unreadable: As in `Source`.

    Raises:
      UserError: if the folder is missing, contains no images, one class, a class with one image that is needed twice,
        or images both in and next to class folders; if a file is empty, or, among the first 10,000 images, is no image
        or a too large one; if folders contain links to themselves.
    """
    root = _directory(path)
    where = f"folder '{root}'"
    there = [name for name in _SPLITS if (root / name).is_dir()]
    folders = {"all": root}
    if "train" in there:
        folders = {name: root / name for name in there} if len(there) > 1 else {"all": root / "train"}
    found = {name: _relative(folder) for name, folder in folders.items()}
    classes = _classes(folders, found) if labels else ()
    index = {name: i for i, name in enumerate(classes)}
    tables = {
        name: Table(paths, np.array([index[_top(path)] for path in paths], np.int32) if classes else None)
        for name, paths in found.items()
    }
    about = Source((), len(classes), 0, 3, str(root), "", classes, upright=True, skip_unreadable=skip_unreadable)
    chosen = ((split, *select(split, tables, where)) for split in splits)
    return [_source(about._replace(split=split), folders[key], tables[key], rows) for split, key, rows in chosen]


def open_csv(path: str, splits: Sequence[str], labels: bool, skip_unreadable: bool) -> list[Source]:
    """Returns some splits of the images listed in a CSV file.

    Its first line names the columns: `path`, relative to the file or absolute; `label`, whole numbers or names, if
    there are any; and `split`, if the splits are not to be made by `splits.select`.

    Args:
      path: The CSV file.
      splits: Each as in `splits.select`.
      labels: Whether to use the labels.
      skip_unreadable: As in `Source`.

    Raises:
      UserError: if the file is missing or has no such columns; if a label is invalid or missing; if an image is listed
        twice; otherwise as in `open_folder`.
    """
    file = Path(path).expanduser()
    where = f"'{file}'"
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            columns = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = columns
            lines = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} cannot be read as CSV: {storage.one_line(error)}") from error
    if "path" not in columns:
        raise UserError(
            f"{where}: the first line must name the columns: path, label; got {', '.join(columns) or 'none'}"
        )
    paths = [(line["path"] or "").strip() for line in lines]
    places = [f"{file}, line {i}" for i in range(2, len(lines) + 2)]
    for place, image in zip(places, paths, strict=True):
        if not image:
            raise UserError(f"{place}: the path is missing")
    if not paths:
        raise UserError(f"{where} lists no images")
    if repeated := [image for image, count in Counter(paths).items() if count > 1]:
        raise UserError(f"{where}: {repeated[0]} is listed {paths.count(repeated[0])} times")
    numbers, count, names = None, 0, ()
    if labels and "label" in columns:
        numbers, count, names = classes_of([line["label"] for line in lines], places)
        if count < 2:
            raise UserError(f"{where}: there is only one class; set config.data.labels=False to train without labels")
    rows_of: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        rows_of.setdefault((line.get("split") or "all").strip(), []).append(i)
    tables = {
        name: Table([paths[i] for i in rows], None if numbers is None else numbers[rows])
        for name, rows in rows_of.items()
    }
    about = Source((), count, 0, 3, str(file), "", names, upright=True, skip_unreadable=skip_unreadable)
    chosen = ((split, *select(split, tables, where)) for split in splits)
    return [_source(about._replace(split=split), file.parent, tables[key], rows) for split, key, rows in chosen]


def _source(about: Source, root: Path, table: Table, rows: np.ndarray) -> Source:
    """Returns a source with these rows of a table, after checking as many files as can be checked in seconds."""
    labels = None if table.labels is None else table.labels[rows]
    paths = [table.names[i] for i in rows]
    files = Files(str(root), paths, labels)
    sizes = set()
    for i in range(min(len(files), _CHECKED_SIZES)):
        try:
            if not os.stat(files.path(i)).st_size:
                raise UserError("the file is empty")
            if i < _CHECKED_HEADERS:
                sizes.add(_size(files.path(i)))
        except Exception as error:  # Pillow may raise anything
            if not about.skip_unreadable:
                reason = getattr(error, "strerror", None) or storage.one_line(error)
                raise _unreadable(files.path(i), reason) from error
    width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    same = width == height and len(files) * width * height * about.image_channels <= LIMIT
    return about._replace(examples=files, image_size=width if same else 0)


def _unreadable(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be read: {reason}; python -m lfcc_jax.data.check lists all such files, and "
        "config.data.skip_unreadable=True leaves them out"
    )


def _size(path: str) -> tuple[int, int]:
    """Returns width and height in the header of an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            # Pillow would decode a PNG to look for it at the end.
            exif = image.getexif() if image.format == "TIFF" or "exif" in image.info else {}
            turned = exif.get(0x0112, 1) in (5, 6, 7, 8)
    if width * height > LARGEST:
        raise UserError(f"it has {width:,} x {height:,} pixels; images must have at most {LARGEST:,}")
    return (height, width) if turned else (width, height)


def _directory(path: str) -> Path:
    if storage.is_remote(path):
        raise UserError(f"folder '{path}' must be on a local disk; copy it there")
    root = Path(path).expanduser()
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        near = (
            f"; {root.parent} contains {', '.join(sorted(p.name for p in root.parent.iterdir())[:8])}"
            if (root.parent.is_dir() and not root.exists())
            else ""
        )
        raise UserError(f"folder '{path}' {problem}{near}")
    return root


def list_images(folder: Path) -> list[Path]:
    """Returns the paths of all images in a folder, at any depth, in alphabetical order.

    Raises:
      UserError: if there are none, a folder cannot be read, or a link leads to a folder that contains it.
    """
    return [folder / path for path in _relative(folder)]


def _relative(folder: Path) -> list[str]:
    if paths := sorted(_walk(str(folder), "", ())):
        return paths
    others = Counter(Path(name).suffix.lower() for _, _, names in os.walk(folder) for name in names)
    found = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in others.most_common(5))
    only = f", only {found}" if found else ""
    raise UserError(f"{folder} contains no images ({', '.join(_SUFFIXES)}){only}")


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        raise UserError(f"{folder} is a link to a folder that contains it; remove the link")
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.name.lower().endswith(_SUFFIXES) and not entry.is_dir():
            yield prefix + entry.name
        elif entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))


def _top(path: str) -> str:
    return path.partition("/")[0]


def _classes(folders: dict[str, Path], found: dict[str, list[str]]) -> tuple[str, ...]:
    """Returns the names of the classes, or none if all images are directly in their folder."""
    for name, paths in found.items():
        loose = [path for path in paths if "/" not in path]
        if loose and len(loose) < len(paths):
            nested = next(path for path in paths if "/" in path)
            raise UserError(
                f"{folders[name]} contains images both in folders ({nested}) and next to them ({loose[0]}); move them "
                "into class folders, or set config.data.labels=False to train without labels"
            )
    flat = {name for name, paths in found.items() if "/" not in paths[0]}
    if flat and len(flat) < len(found):
        raise UserError(
            f"{folders[min(flat)]} has no class folders, unlike {folders[min(set(found) - flat)]}; set "
            "config.data.labels=False to train without labels"
        )
    if flat:
        return ()
    first = next(iter(found))
    counts = Counter(map(_top, found[first]))
    if len(counts) == 1:
        raise UserError(
            f"{folders[first]} has only one class folder, {next(iter(counts))}; set config.data.labels=False to train "
            "without labels"
        )
    if len(found) == 1:
        for name, count in counts.items():
            if count == 1:
                raise UserError(
                    f"{folders[first] / name} contains one image; a class needs at least two, to train and to test with"
                )
    for name, paths in found.items():
        if extra := set(map(_top, paths)) - counts.keys():
            raise UserError(f"{folders[name] / min(extra)} is a class that {folders[first]} does not have")
    return tuple(sorted(counts))

"""Image files: those of a folder, with a class per folder or without labels, and those listed in a CSV file."""

import csv
import hashlib
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

    def digest(self) -> str:
        """Returns a digest of all paths and labels."""
        labels = b"" if self._labels is None else self._labels.tobytes()
        return hashlib.sha256(self._paths + self._ends.tobytes() + labels).hexdigest()[:12]

    def path(self, index: int) -> str:
        """Returns the path of a file."""
        start = self._ends[index - 1] if index else 0
        return os.path.join(self.root, os.fsdecode(self._paths[start : self._ends[index]]))


def open_folder(path: str, wanted: Sequence[str], labels: bool, skip_unreadable: bool) -> list[Source]:
    """Returns some splits of a folder of images.

    If its folders are `train` and `test` (or `val`, `validation`), they are the splits, else `splits.select` makes
    them. In them, each folder is a class, named after the folder, with images at any depth; or all images are without
    labels. Hidden files and folders are left out.

    Args:
      path: The folder.
      wanted: The splits; each as in `splits.select`.
      labels: Whether to use folders as classes. If False, images at any depth are used without labels.
      skip_unreadable: As in `Source`.

    Raises:
      UserError: if the folder is missing, contains no images, one class, a class with one image that is needed twice,
        or images both in and next to class folders; if a file is empty, or, among the first 10,000 images, is no image
        or a too large one; if folders contain links to themselves; if some folders are splits and others are not.
    """
    root = _directory(path)
    where = f"folder '{root}'"
    splits = _splits(root)
    paths = _relative(root)
    if splits and (loose := next((path for path in paths if "/" not in path), None)):
        raise UserError(f"{root} contains images ({loose}) next to the folders of its splits, {', '.join(splits)}")
    tops = [path.partition("/")[0] for path in paths] if splits else []
    if missing := set(splits) - set(tops):
        raise UserError(f"{root / min(missing)} contains no images ({', '.join(_SUFFIXES)})")
    names = [path.partition("/")[2] for path in paths] if splits else paths
    split_of = np.array([splits.index(top) for top in tops], np.int32) if splits else None
    classes, numbers = (), None
    if labels:
        classes, numbers = _classes(root, names, splits, split_of)
    table = Table(paths, numbers, [split.lower() for split in splits], split_of)
    about = Source((), len(classes), 0, 3, str(root), "", classes, upright=True, skip_unreadable=skip_unreadable)
    return [_source(about._replace(split=split), root, table, select(split, table, where)) for split in wanted]


def open_csv(path: str, wanted: Sequence[str], labels: bool, skip_unreadable: bool) -> list[Source]:
    """Returns some splits of the images listed in a CSV file.

    Its first line names the columns: `path`, relative to the file or absolute; `label`, whole numbers or names, if
    there are any; and `split`, if the splits are not to be made by `splits.select`.

    Args:
      path: The CSV file.
      wanted: The splits; each as in `splits.select`.
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
            columns = rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
            numbered = [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} cannot be read as CSV: {storage.one_line(error)}") from error
    if "path" not in columns:
        raise UserError(
            f"{where}: the first line must name the columns: path, label; got {', '.join(columns) or 'none'}"
        )
    if not numbered:
        raise UserError(f"{where} lists no images")
    places = [f"{file}, line {number}" for number, _ in numbered]
    for place, (_, row) in zip(places, numbered, strict=True):
        if None in row:
            raise UserError(f"{place} must have {len(columns)} columns, got more; a path with a comma needs quotes")
        if empty := [name for name in ("path", "split") if name in columns and not (row[name] or "").strip()]:
            raise UserError(f"{place}: the {empty[0]} is missing")
    paths = [row["path"].strip() for _, row in numbered]
    if repeated := [image for image, count in Counter(paths).items() if count > 1]:
        raise UserError(f"{where}: {repeated[0]} is listed {paths.count(repeated[0])} times")
    numbers, count, names = None, 0, ()
    if labels and "label" in columns:
        numbers, count, names = classes_of([row["label"] for _, row in numbered], places)
        if count < 2:
            raise UserError(f"{where}: there is only one class; set config.data.labels=False to train without labels")
    splits, split_of = [], None
    if "split" in columns:
        splits, split_of = np.unique([row["split"].strip().lower() for _, row in numbered], return_inverse=True)
        splits = splits.tolist()
    table = Table(paths, numbers, splits, split_of)
    about = Source((), count, 0, 3, str(file), "", names, upright=True, skip_unreadable=skip_unreadable)
    return [_source(about._replace(split=split), file.parent, table, select(split, table, where)) for split in wanted]


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
    if not sizes:
        raise UserError(f"none of the first {min(len(files), _CHECKED_HEADERS):,} images of '{about.name}' can be read")
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


def _splits(root: Path) -> list[str]:
    """Returns the folders that are splits, or none."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = [name for name in folders if name.lower() in _SPLITS]
    if splits and (len(splits) < len(folders) or "train" not in map(str.lower, splits)):
        others = [name for name in folders if name not in splits][:5] or ["no train"]
        raise UserError(
            f"{root} must contain train and test (or val) only, or no folder of such a name, got "
            f"{', '.join(splits)} next to {', '.join(others)}; rename, move or remove some"
        )
    return splits


def _classes(
    root: Path, names: list[str], splits: list[str], split_of: np.ndarray | None
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Returns the names of the classes and the label of each image; none if all images are directly in their folder."""
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    loose = tops.count("")
    if loose == len(names):
        return (), None
    if loose:
        first, nested = names[tops.index("")], next(name for name in names if "/" in name)
        raise UserError(
            f"{root} contains images both in folders ({nested}) and next to them ({first}); move them into class "
            "folders, or set config.data.labels=False to train without labels"
        )
    of_split = [Counter(tops)]
    if splits:
        of_split = [Counter(top for top, k in zip(tops, split_of, strict=True) if k == i) for i in range(len(splits))]
    train = [name.lower() for name in splits].index("train") if splits else 0
    counts = of_split[train]
    if len(counts) == 1:
        raise UserError(
            f"{root} has only one class folder, {next(iter(counts))}; set config.data.labels=False to train without "
            "labels"
        )
    for name, count in counts.items() if len(splits) < 2 else ():
        if count == 1:
            raise UserError(f"{root / name} contains one image; a class needs at least two, to train and to test with")
    for split, others in zip(splits, of_split, strict=False):
        if extra := others.keys() - counts.keys():
            raise UserError(f"{root / split / min(extra)} is a class that {root / splits[train]} does not have")
    classes = tuple(sorted(counts))
    index = {name: i for i, name in enumerate(classes)}
    return classes, np.array([index[top] for top in tops], np.int32)

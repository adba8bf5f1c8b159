"""Splits and classes of data sets that come without: images are ordered by a digest of their names, evenly by class."""

import hashlib
import math
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lfcc_jax.errors import UserError, shown, unknown

# Splits that are taken as the test split if there is none of that name, in this order.
_HELD_OUT = ("test", "validation", "val", "valid")
# Without splits, `train` and `test` are these parts of all images.
_PARTS = {"train": ":90%", "test": "90%:", "all": ":"}
_MOST_CLASSES = 100_000


class Table(NamedTuple):
    """Names, labels and splits of the images of a data set.

    Attributes:
      names: Name of each image, unique and independent of where the data set lies.
      labels: `[images]`, int32; None without labels.
      splits: Names of the splits that the data set comes with, or none.
      split_of: `[images]`, the position in `splits` of each image's split.
    """

    names: Sequence[str]
    labels: np.ndarray | None
    splits: Sequence[str] = ()
    split_of: np.ndarray | None = None


def select(split: str, table: Table, where: str) -> np.ndarray:
    """Returns the images of a split, in an order that depends on nothing but their names and classes.

    Every class is spread evenly over that order, so any part of it contains all classes in about equal fractions.

    Args:
      split: `train`, `test`, `all`, or one of the data set's; with a part of it, if any, as in `train[:10%]`.
      table: The images. If they come without splits, or with `train` alone, `train` is 90 % of them, and `test` the
        rest. If there is no `test`, a `validation` or `val` takes its place.
      where: Name of the data set in error messages.

    Returns:
      Indices into the table.

    Raises:
      UserError: if the split is unknown, invalid, or empty.
    """
    match = re.fullmatch(r"([\w.-]+?)(?:\[(.*)\])?", split)
    if not match:
        raise UserError(f"{where}: a split must be like 'train', 'train[:10%]' or 'train[100:200]', got {shown(split)}")
    base, part = match.groups()
    parts = [] if part is None else [part]
    rows = np.arange(len(table.names))
    if base != "all" and len(table.splits) > 1:
        if base in _HELD_OUT and base not in table.splits:
            base = next((name for name in _HELD_OUT if name in table.splits), base)
        if base not in table.splits:
            raise unknown("split", base, {*table.splits, "all"}, where)
        rows = np.flatnonzero(table.split_of == list(table.splits).index(base))
    elif base in _PARTS:
        parts = [_PARTS[base], *parts]
    else:
        raise unknown("split", base, _PARTS, where)
    names = [table.names[i] for i in rows]
    rows = rows[_order(names, None if table.labels is None else table.labels[rows])]
    total = len(rows)
    for part in parts:
        rows = rows[_part(part, len(rows), f"{where}: split {shown(split)}")]
    if not len(rows):
        few = "; ten images are the fewest that can be split" if len(table.splits) < 2 and total < 10 else ""
        raise UserError(f"{where}: split '{split}' is empty; it is taken from {total:,} images{few}")
    return rows


def _order(names: Sequence[str], labels: np.ndarray | None) -> np.ndarray:
    """Returns the images in the order of their digests, each class evenly spread."""
    encoded = (name.encode("utf-8", "surrogateescape") for name in names)
    digests = [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) for name in encoded]
    order = np.argsort(np.array(digests, np.uint64), kind="stable")
    if labels is None:
        return order
    labels = np.maximum(labels[order], 0)
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    place = np.empty(len(labels))
    # The last image of each class is at 1, so that every class has one in the test split.
    place[by_class] = (np.arange(len(labels)) - starts[labels[by_class]] + 1) / counts[labels[by_class]]
    return order[np.argsort(place, kind="stable")]


def _part(part: str, total: int, where: str) -> slice:
    """Returns the slice that `:10%` or `100:200` stands for."""
    bounds = part.split(":")
    if len(bounds) != 2 or any(not re.fullmatch(r"\s*(-?\d+%?)?\s*", bound) for bound in bounds):
        raise UserError(f"{where}: the part in brackets must be like [:10%], [10%:] or [100:200]")

    def position(bound: str) -> int | None:
        bound = bound.strip()
        if not bound:
            return None
        value = int(bound.rstrip("%"))
        if not bound.endswith("%"):
            return value
        if abs(value) > 100:
            raise UserError(f"{where}: a percentage must be at most 100, got {value}%")
        return round(total * value / 100)

    return slice(*map(position, bounds))


def classes_of(values: Sequence[object], where: Sequence[str] | str) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Returns the labels that some values stand for: whole numbers, or names. Prints numbers that none has.

    Args:
      values: Numbers or strings.
      where: What to call each value in errors, or all of them.

    Returns:
      Labels, int32 `[values]`; the number of classes; and their names, in alphabetical order, empty for numbers.

    Raises:
      UserError: if a value is missing, negative, too large, or a number that is not whole.
    """
    place = (lambda i: where) if isinstance(where, str) else (lambda i: where[i])
    texts = [str(value).strip() if value is not None else "" for value in values]
    numbers = [_number(text) for text in texts]
    if None not in numbers:
        for i, number in enumerate(numbers):
            if number != math.floor(number) or not 0 <= number < _MOST_CLASSES:
                raise UserError(
                    f"{place(i)}: a label must be a whole number in [0, {_MOST_CLASSES:,}), got {shown(texts[i])}"
                )
        labels = np.array(numbers, np.int64).astype(np.int32)
        count = int(labels.max()) + 1
        if len(absent := np.setdiff1d(np.arange(count), labels)):
            listed = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
            print(
                f"{place(0).partition(', line ')[0]}: {len(absent):,} of {count:,} classes have no images: {listed}; "
                "labels are counted from 0",
                file=sys.stderr,
            )
        return labels, count, ()
    for i, text in enumerate(texts):
        if not text:
            raise UserError(f"{place(i)}: the label is missing")
    if any(number is not None and number != math.floor(number) for number in numbers):
        i = next(i for i, number in enumerate(numbers) if number is not None and number != math.floor(number))
        raise UserError(f"{place(i)}: labels must all be whole numbers, or all be names, got {shown(texts[i])}")
    names, labels = np.unique(np.array(texts), return_inverse=True)
    return labels.astype(np.int32), len(names), tuple(names.tolist())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

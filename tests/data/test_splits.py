"""Splits and classes of data sets that come without."""

import numpy as np
import pytest

from lfcc_jax.data.splits import Table, classes_of, select
from lfcc_jax.errors import UserError

NAMES = [f"{label}/{i}.jpg" for label in "abc" for i in range(40)]
LABELS = np.repeat(np.arange(3, dtype=np.int32), 40)


def test_parts_of_a_split_are_disjoint_complete_and_contain_every_class_evenly():
    table = Table(NAMES, LABELS)
    train, test, every = (set(select(split, table, "here").tolist()) for split in ("train", "test", "all"))
    assert not train & test
    assert train | test == every == set(range(120))
    for split in ("train[:50%]", "train[50%:]", "test", "all[:30]"):
        chosen = select(split, table, "here")
        counts = np.bincount(LABELS[chosen], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_a_split_depends_on_names_and_not_on_their_order():
    chosen = select("test", Table(NAMES, LABELS), "here")
    shuffled = np.random.default_rng(0).permutation(120)
    table = Table([NAMES[i] for i in shuffled], LABELS[shuffled])
    again = select("test", table, "here")
    assert {NAMES[i] for i in chosen} == {table.names[i] for i in again}
    assert [NAMES[i] for i in chosen] != sorted(NAMES[i] for i in chosen)  # not the end of each class


def test_an_unlabeled_split_stays_when_images_are_added():
    few, many = Table(NAMES[:100], None), Table(NAMES, None)
    first = {NAMES[i] for i in select("test", few, "here")}
    second = {NAMES[i] for i in select("test", many, "here")}
    assert len(first & second) >= 0.7 * len(first)


@pytest.mark.parametrize("name", ["test", "val", "validation", "valid"])
def test_the_test_split_goes_by_several_names(name):
    table = Table(NAMES, LABELS, ["train", name], np.repeat([0, 1], [50, 70]))
    assert sorted(select("test", table, "here")) == list(range(50, 120))
    assert sorted(select("train", table, "here")) == list(range(50))
    assert sorted(select("all", table, "here")) == list(range(120))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", "here: unknown split 'trian'; did you mean 'train'?"),
        ("train[", "here: a split must be like 'train', 'train\\[:10%\\]' or 'train\\[100:200\\]', got 'train\\['"),
        ("train[:a]", "here: split 'train\\[:a\\]': the part in brackets must be like"),
        ("train[:200%]", "here: split 'train\\[:200%\\]': a percentage must be at most 100, got 200%"),
        ("train[:0]", "here: split 'train\\[:0\\]' is empty; it is taken from 120 images"),
        ("train[300:]", "is empty"),
    ],
)
def test_select_rejects_invalid_splits(split, message):
    with pytest.raises(UserError, match=message):
        select(split, Table(NAMES, LABELS), "here")


def test_too_few_images_to_split_are_an_error():
    with pytest.raises(UserError, match="split 'test' is empty; it is taken from 4 images; ten images are the fewest"):
        select("test", Table(NAMES[:4], None), "here")


@pytest.mark.parametrize("places", [["a.csv, line 2", "a.csv, line 3"], "a.csv"])
def test_classes_without_images_are_named(places, capsys):
    assert classes_of(["1", "2"], places)[1] == 3
    assert capsys.readouterr().err == "a.csv: 1 of 3 classes have no images: 0; labels are counted from 0\n"
    classes_of(["9", "0"], places)
    assert "8 of 10 classes have no images: 1, 2, 3, 4, 5, ...; " in capsys.readouterr().err
    classes_of(["1", "0"], places)
    assert not capsys.readouterr().err


def test_classes_are_whole_numbers_or_names():
    labels, count, names = classes_of(["3", 1, "0"], "here")
    assert (labels.tolist(), count, names) == ([3, 1, 0], 4, ())
    labels, count, names = classes_of(["dog", " cat ", "dog"], "here")
    assert (labels.tolist(), count, names) == ([1, 0, 1], 2, ("cat", "dog"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "1.5"], "line 2: a label must be a whole number in \\[0, 100,000\\), got '1.5'"),
        (["1", "-1"], "line 2: a label must be a whole number in \\[0, 100,000\\), got '-1'"),
        (["1", "100000"], "line 2: a label must be a whole number in"),
        (["cat", ""], "line 2: the label is missing"),
        (["cat", "1.5"], "line 2: labels must all be whole numbers, or all be names, got '1.5'"),
    ],
)
def test_classes_reject_invalid_labels(values, message):
    with pytest.raises(UserError, match=message):
        classes_of(values, ["line 1", "line 2"])

import itertools
import time

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from lfcc_jax import data
from lfcc_jax.errors import UserError


@pytest.fixture
def indexed():
    """A source whose images contain their own index."""
    examples = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(22)]
    return data.Source(examples, 22, 2, 1)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def set_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def test_digits_contain_every_scikit_learn_digit_once(data_dir):
    images, targets = load_digits(return_X_y=True)
    expected = sorted(
        (np.round(x * 255 / 16).astype(np.uint8).tobytes(), y) for x, y in zip(images, targets, strict=True)
    )
    splits = [data.open_source("digits", split, data_dir) for split in ("train", "test")]
    assert [len(split.examples) for split in splits] == [1297, 500]
    examples = [example for split in splits for example in split.examples]
    assert sorted((example["image"].tobytes(), example["label"]) for example in examples) == expected


def test_train_batches_reshuffle_every_epoch(indexed):
    epochs = np.array(labels(take(data.train_batches(indexed, 8, seed=0), 2 * 30))).reshape(30, 16)
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 30
    # Different examples are dropped in each epoch, with probability 6 / 22.
    assert set(epochs.ravel()) == set(range(22))


def test_train_batches_depend_on_the_seed(indexed):
    first, again, other = (labels(take(data.train_batches(indexed, 8, seed=s), 4)) for s in (0, 0, 1))
    assert first == again != other


def test_train_batches_contain_the_index_of_each_example(indexed):
    for batch in take(data.train_batches(indexed, 8, seed=0), 5):
        np.testing.assert_array_equal(batch["index"], batch["label"])  # labels equal indices in this source
        assert batch["index"].dtype == np.int32


@pytest.mark.parametrize("count", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(indexed, monkeypatch, count):
    expected = take(data.train_batches(indexed, 8, seed=3), 5)
    slices = []
    for index in range(count):
        set_process(monkeypatch, index, count)
        slices.append(take(data.train_batches(indexed, 8, seed=3), 5))
    for step, batch in enumerate(expected):
        for key in batch:
            actual = np.concatenate([part[step][key] for part in slices])
            np.testing.assert_array_equal(actual, batch[key])


def test_train_batches_resume_from_a_saved_state(indexed):
    iterator = data.train_batches(indexed, 8, seed=0)
    take(iterator, 3)
    state = iterator.get_state()
    resumed = data.train_batches(indexed, 8, seed=0)
    resumed.set_state(state)
    for ours, theirs in zip(take(iterator, 4), take(resumed, 4), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("count", [1, 2])
def test_eval_batches_contain_every_example_once_plus_padding(indexed, monkeypatch, count):
    labels_read, padding = [], 0
    for index in range(count):
        set_process(monkeypatch, index, count)
        batches = list(data.eval_batches(indexed, 8))
        assert [len(batch["label"]) for batch in batches] == [8 // count] * 3
        for batch in batches:
            labels_read += batch["label"][batch["mask"]].tolist()
            padding += (~batch["mask"]).sum()
    assert sorted(labels_read) == list(range(22))
    assert padding == 2


def test_open_source_accepts_a_prepared_directory(data_dir):
    source = data.open_source(f"{data_dir}/digits/1.0.0", "test[:10]")
    assert (len(source.examples), source.num_classes, source.image_size, source.image_channels) == (10, 10, 8, 1)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "test", "unknown data set 'digit'; did you mean 'digits'"),
        ("digits", "tset", "unknown split 'tset'; did you mean 'test'"),
        ("digits", "test[:0]", r"split 'test\[:0\]' (is empty|cannot be read)"),
        ("digits", "test[5:3]", r"split 'test\[5:3\]' cannot be read"),
        ("digits", "test[:2000]", r"split 'test\[:2000\]' cannot be read"),
        ("digits", "test[:10%", r"split 'test\[:10%' cannot be read"),
        ("/nowhere", "test", "unknown data set '/nowhere'"),
        ("", "test", "unknown data set ''"),
    ],
)
def test_open_source_rejects_unknown_data_sets_and_splits(data_dir, name, split, message):
    with pytest.raises(UserError, match=message):
        data.open_source(name, split, data_dir)


def test_train_batches_prefetch_only_a_few_batches(indexed):
    read = []

    class Counted:
        def __len__(self):
            return 4000

        def __getitem__(self, index):
            read.append(index)
            return indexed.examples[index % 22]

    batches = data.train_batches(indexed._replace(examples=Counted()), 10, seed=0)
    take(batches, 2)
    time.sleep(1)  # let it fill its prefetch buffer
    assert len(read) <= 10 * (2 + 4 + 4)  # taken, being read, prefetched

import itertools
import time

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from lfcc_jax import data
from lfcc_jax.errors import UserError


@pytest.fixture
def numbered():
    """A source whose images carry their own number."""
    examples = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(22)]
    return data.Source(examples, 22, 2, 1)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def pretend_to_be(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def test_digits_are_those_of_scikit_learn_each_once(data_dir):
    images, targets = load_digits(return_X_y=True)
    expected = sorted(
        (np.round(x * 255 / 16).astype(np.uint8).tobytes(), y) for x, y in zip(images, targets, strict=True)
    )
    splits = [data.open_source("digits", split, data_dir) for split in ("train", "test")]
    assert [len(split.examples) for split in splits] == [1297, 500]
    examples = [example for split in splits for example in split.examples]
    assert sorted((example["image"].tobytes(), example["label"]) for example in examples) == expected


def test_every_epoch_is_a_new_order_of_full_batches(numbered):
    epochs = np.array(labels(take(data.train_batches(numbered, 8, seed=0), 2 * 30))).reshape(30, 16)
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 30
    # No example is left out for good: each misses an epoch with probability 6 / 22.
    assert set(epochs.ravel()) == set(range(22))


def test_the_seed_fixes_the_order_and_another_changes_it(numbered):
    first, again, other = (labels(take(data.train_batches(numbered, 8, seed=s), 4)) for s in (0, 0, 1))
    assert first == again != other


def test_a_training_batch_says_which_examples_it_holds(numbered):
    for batch in take(data.train_batches(numbered, 8, seed=0), 5):
        np.testing.assert_array_equal(batch["index"], batch["label"])  # the source's examples are labeled so
        assert batch["index"].dtype == np.int32


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batches_do_not_depend_on_the_number_of_processes(numbered, monkeypatch, count):
    alone = take(data.train_batches(numbered, 8, seed=3), 5)
    shares = []
    for index in range(count):
        pretend_to_be(monkeypatch, index, count)
        shares.append(take(data.train_batches(numbered, 8, seed=3), 5))
    for step, batch in enumerate(alone):
        for key in batch:
            together = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(together, batch[key])


def test_the_iterator_goes_on_from_its_state_bit_for_bit(numbered):
    iterator = data.train_batches(numbered, 8, seed=0)
    take(iterator, 3)
    state = iterator.get_state()
    resumed = data.train_batches(numbered, 8, seed=0)
    resumed.set_state(state)
    for ours, theirs in zip(take(iterator, 4), take(resumed, 4), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_every_example_once_and_pads_the_rest(numbered, monkeypatch, count):
    seen, padding = [], 0
    for index in range(count):
        pretend_to_be(monkeypatch, index, count)
        batches = list(data.eval_batches(numbered, 8))
        assert [len(batch["label"]) for batch in batches] == [8 // count] * 3
        for batch in batches:
            seen += batch["label"][batch["mask"]].tolist()
            padding += (~batch["mask"]).sum()
    assert sorted(seen) == list(range(22))
    assert padding == 2


def test_a_prepared_directory_is_a_data_set_too(data_dir):
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
def test_what_does_not_exist_is_said(data_dir, name, split, message):
    with pytest.raises(UserError, match=message):
        data.open_source(name, split, data_dir)


def test_few_batches_are_made_ahead(numbered):
    read = []

    class Counted:
        def __len__(self):
            return 4000

        def __getitem__(self, index):
            read.append(index)
            return numbered.examples[index % 22]

    batches = data.train_batches(numbered._replace(examples=Counted()), 10, seed=0)
    take(batches, 2)
    time.sleep(1)  # it reads on by itself as far as it will
    assert len(read) <= 10 * (2 + 4 + 4)  # taken, in the making, waiting

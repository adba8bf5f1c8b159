"""Small data sets in memory."""

import itertools

import numpy as np
import pytest

from lfcc_jax import data
from lfcc_jax.data.in_memory import fits_in_memory


class Counted(list):
    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_in_memory_reads_once_and_is_read_only():
    examples = Counted({"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(22))
    source = data.Source(examples, 22, 2, 1)
    kept = data.in_memory(source)
    assert examples.reads == 22
    ours, theirs = (itertools.islice(data.train_batches(s, 8, seed=0), 20) for s in (kept, source))
    for after, before in zip(ours, theirs, strict=True):
        assert before.keys() == after.keys()
        for name in before:
            assert before[name].dtype == after[name].dtype
            np.testing.assert_array_equal(before[name], after[name])
    assert len(kept.examples) == 22
    assert examples.reads >= 22 + 20 * 8  # reads of the original source
    with pytest.raises(ValueError, match="read-only"):
        kept.examples[0]["image"][:] = 0
    assert data.read_all(kept)["image"] is data.read_all(kept)["image"]


def test_fits_in_memory_requires_one_size_and_at_most_1_gib():
    source = data.Source([{}] * 22, 22, 2, 1)
    assert fits_in_memory(source)
    assert fits_in_memory(source._replace(examples=[{}] * 2**10, image_size=2**10))
    assert not fits_in_memory(source._replace(examples=[{}] * 2**10, image_size=2**10, image_channels=3))
    assert not fits_in_memory(source._replace(image_size=0))


@pytest.mark.parametrize(("changed", "kept"), [({}, True), ({"resident": True}, True), ({"workers": 1}, False)])
def test_load_keeps_images_in_memory_unless_workers_read_them(changed, kept, data_dir):
    inputs = data.open_inputs("digits", "train[:9]", "test[:7]", data_dir=data_dir, **changed).load()
    for split in (inputs.train, inputs.test):
        first, again = (split.examples[0]["image"] for _ in range(2))
        assert np.shares_memory(first, again) == kept

"""Streamed batches, and training on images in device memory."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from lfcc_jax import data
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import build
from lfcc_jax.training.feeds import ResidentFeed, StreamFeed
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.report import read_metrics
from lfcc_jax.training.sharding import create_mesh


def resident(config):
    return config | {"data": config["data"] | {"resident": True}}


def test_train_indices_and_read_all_give_the_examples_of_train_batches(data_dir):
    source = data.open_source("digits", "train[:50]", data_dir)
    examples = data.read_all(source)
    indices = data.train_indices(source, 8, seed=3)
    for batch, index in itertools.islice(zip(data.train_batches(source, 8, seed=3), indices, strict=False), 13):
        np.testing.assert_array_equal(index, batch["index"])
        for name, x in examples.items():
            assert x.dtype == batch[name].dtype
            np.testing.assert_array_equal(x[index], batch[name])


def test_resident_run_equals_the_streamed_run_up_to_rounding_and_resumes_bit_for_bit(distilled, tmp_path, monkeypatch):
    # SGD, because Adam would take full steps along gradients that are only rounding errors.
    optimizer = {"name": "sgd", "learning_rate": {"name": "cosine", "peak": 0.02}, "weight_decay": 1e-3}
    config = distilled(optimizer=optimizer, log_every_steps=3, checkpoint_every_steps=5)
    config["losses"] = {
        "cross_entropy": {},
        # These keep state between steps.
        "crd_bank": {"width": 8, "num_negatives": 16},
        "queue": {"stages": ("stage2",), "size": 12},
        "regression": {"on": "pooled"},
    }
    train_and_evaluate(config, tmp_path / "streamed")
    train_and_evaluate(resident(config), tmp_path / "resident")
    streamed, ours = (read_metrics(tmp_path / name) for name in ("streamed", "resident"))
    assert [row["step"] for row in ours] == [row["step"] for row in streamed] == [0, 3, 4, 5, 6, 8]
    for theirs, row in zip(streamed, ours, strict=True):
        assert row.keys() == theirs.keys()
        for name in row.keys() - {"train/images_per_second"}:
            np.testing.assert_allclose(row[name], theirs[name], rtol=1e-3, atol=5e-4, err_msg=name)

    calls = iter(range(1, 100))
    request = SimpleNamespace(is_set=lambda: next(calls) == 3)
    monkeypatch.setattr("lfcc_jax.train.watch_signals", lambda: contextlib.nullcontext(request))
    with pytest.raises(Preempted, match="stopped at step 5 of 8"):
        train_and_evaluate(resident(config), tmp_path / "stopped")
    monkeypatch.undo()
    train_and_evaluate(resident(config), tmp_path / "stopped")
    stopped = read_metrics(tmp_path / "stopped")[-1]
    for name in stopped.keys() - {"train/images_per_second"}:
        assert ours[-1][name] == stopped[name]


def test_resident_feed_gathers_examples_without_communication(distilled):
    config = read_config(distilled(losses={"cross_entropy": {}}, teacher={}, student={"name": "mixer_pico"}))
    mesh = create_mesh()
    inputs = data.open_inputs("noise_10x8", resident=True).load()
    distillation = build(config, inputs.images)
    feed = ResidentFeed(inputs, mesh, 16, seed=0, capacity=4)
    loop = distillation.train_step(mesh, program=feed.program)
    text = loop.lower(*distillation.step_arguments(mesh), feed.shapes()).compile().as_text()
    assert "all-reduce" in text  # of the gradient
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "collective-permute" not in text


class Counter:
    """An iterator with a state, like Grain's."""

    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        return {"x": np.full(8, self.count)}

    def get_state(self):
        return {"next": self.count}

    def set_state(self, state):
        self.count = state["next"]


def test_stream_feed_state_excludes_the_prefetched_batch():
    source = Counter()
    images = SimpleNamespace(num_classes=10)
    inputs = SimpleNamespace(train_batches=lambda batch_size, seed: source, host_shape=(8, 8, 1), images=images)
    feed = StreamFeed(inputs, create_mesh(), 8, seed=0)
    for expected in (1, 2, 3):
        batch, count = feed.take(5)
        assert (batch["x"][0], count) == (expected, 1)
        assert feed.state == {"next": expected}
        assert source.count == expected + 1
    feed.restore({"next": 1})
    assert feed.take(1)[0]["x"][0] == 2


def test_stream_feed_shapes_match_its_batches():
    inputs = data.open_inputs("noise_10x8")
    feed = StreamFeed(inputs, create_mesh(), 16, seed=0)
    batch, _ = feed.take(1)
    described = {name: (x.shape, x.dtype, x.sharding) for name, x in batch.items()}
    assert described == {name: (x.shape, x.dtype, x.sharding) for name, x in feed.shapes().items()}
    feed.close()

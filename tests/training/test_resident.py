"""Training on a data set in device memory, many steps in one program."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from lfcc_jax import data
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import Images, build
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.report import read_metrics
from lfcc_jax.training.resident import ResidentFeed
from lfcc_jax.training.sharding import create_mesh


def resident(config):
    return config | {"data": config["data"] | {"resident": True}}


def test_all_examples_and_their_order_are_those_of_the_pipeline(data_dir):
    source = data.open_source("digits", "train[:50]", data_dir)
    examples = data.read_all(source)
    numbers = data.train_indices(source, 8, seed=3)
    for batch, index in itertools.islice(zip(data.train_batches(source, 8, seed=3), numbers, strict=False), 13):
        np.testing.assert_array_equal(index, batch["index"])
        for name, x in examples.items():
            assert x.dtype == batch[name].dtype
            np.testing.assert_array_equal(x[index], batch[name])


def test_a_run_with_its_images_in_device_memory_is_the_run_without_but_for_rounding(distilled, tmp_path):
    # SGD, because Adam makes a whole step of a gradient that is rounding alone.
    optimizer = {"name": "sgd", "learning_rate": {"name": "cosine", "peak": 0.02}, "weight_decay": 1e-3}
    config = distilled(optimizer=optimizer, log_every_steps=3, checkpoint_every_steps=5)
    config["losses"]["crd_bank"] = {"width": 8, "num_negatives": 16}  # which remembers something between steps
    train_and_evaluate(config, tmp_path / "streamed")
    train_and_evaluate(resident(config), tmp_path / "resident")
    streamed, ours = (read_metrics(tmp_path / name) for name in ("streamed", "resident"))
    assert [row["step"] for row in ours] == [row["step"] for row in streamed] == [0, 3, 4, 5, 6, 8]
    for theirs, row in zip(streamed, ours, strict=True):
        assert row.keys() == theirs.keys()
        for name in row.keys() - {"train/images_per_second"}:
            np.testing.assert_allclose(row[name], theirs[name], rtol=1e-3, atol=5e-4, err_msg=name)


def test_such_a_run_that_was_stopped_ends_bit_identical_to_one_that_was_not(distilled, tmp_path, monkeypatch):
    config = resident(distilled(log_every_steps=2))
    train_and_evaluate(config, tmp_path / "whole")
    calls = iter(range(1, 100))
    told = SimpleNamespace(is_set=lambda: next(calls) == 3)
    monkeypatch.setattr("lfcc_jax.train.watch_signals", lambda: contextlib.nullcontext(told))
    with pytest.raises(Preempted, match="stopped at step 6 of 8"):
        train_and_evaluate(config, tmp_path / "stopped")
    monkeypatch.undo()
    train_and_evaluate(config, tmp_path / "stopped")
    whole, stopped = (read_metrics(tmp_path / name)[-1] for name in ("whole", "stopped"))
    for name in whole.keys() - {"train/images_per_second"}:
        assert whole[name] == stopped[name]


def test_examples_are_found_without_communication(distilled):
    config = read_config(distilled(losses={"cross_entropy": {}}, teacher={}, student={"name": "mixer_pico"}))
    mesh = create_mesh()
    source = data.open_source("noise_10x8", "train")
    distillation = build(config, Images(10, 8, 3, 1024))
    feed = ResidentFeed(data.read_all(source), data.train_indices(source, 16, seed=0), mesh, 16, 4)
    loop = distillation.train_step(mesh, resident=True)
    text = loop.lower(*distillation.step_arguments(mesh, 16, (8, 8, 3))[:2], feed.shapes()).compile().as_text()
    assert "all-reduce" in text  # of the gradient
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "collective-permute" not in text

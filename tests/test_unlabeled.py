"""Training on images without labels, and the probe that judges features by a few labeled images."""

import contextlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.models.own_networks as own
from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training import probe
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.report import read_metrics

LFCC = {"width": 8, "stages": ("stage2", "stage4"), "grids": (1, 2), "weight": 0.5}


@pytest.fixture
def unlabeled(distilled):
    """A config that distills the ViT without labels, by KD and LFCC."""

    def make(**changes):
        config = distilled(losses={"kd": {"temperature": 2.0}, "lfcc": LFCC})
        config["data"] = config["data"] | {"labels": False}
        config["probe"] = {k: config["data"][k] for k in ("name", "train_split", "test_split", "data_dir")}
        return config | changes

    return make


def test_a_run_without_labels_compares_networks_and_probes_their_features(unlabeled, tmp_path, capsys):
    summary = train_and_evaluate(unlabeled(), tmp_path / "run")
    assert summary["losses"] == "kd + lfcc"
    assert summary["top1_last"] is summary["teacher_top1"] is summary["calibration_error"] is None
    for key in ("agreement", "knn", "linear", "teacher_knn", "teacher_linear"):
        assert 0 <= summary[key] <= 1
    assert np.isfinite(summary["kl_to_teacher"])
    assert np.isfinite(summary["cka_pooled"])
    rows = read_metrics(tmp_path / "run")
    assert not [key for row in rows for key in row if "accuracy" in key]
    assert "test/knn" in rows[-1]
    assert "test/knn" not in rows[0]
    printed = capsys.readouterr().out
    assert "accuracy" not in printed
    assert "None" not in printed
    assert (tmp_path / "run" / "learning_curves.png").exists()
    student, _ = models.load(tmp_path / "run")
    assert student.num_classes == 10  # the teacher's


def test_a_run_without_labels_takes_the_same_steps_as_one_that_ignores_them(unlabeled, tmp_path):
    with_labels = unlabeled(probe={})
    with_labels["data"] = with_labels["data"] | {"labels": True}
    train_and_evaluate(unlabeled(probe={}), tmp_path / "without")
    train_and_evaluate(with_labels, tmp_path / "with")
    first, second = (models.load(tmp_path / name)[1] for name in ("without", "with"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_run_without_labels_resumes_bit_identical(unlabeled, tmp_path, monkeypatch):
    config = unlabeled()
    train_and_evaluate(config, tmp_path / "whole")
    calls = iter(range(1, 100))
    request = SimpleNamespace(is_set=lambda: next(calls) == 3)
    monkeypatch.setattr("lfcc_jax.train.watch_signals", lambda: contextlib.nullcontext(request))
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path / "parts")
    monkeypatch.undo()
    train_and_evaluate(config, tmp_path / "parts")
    first, second = (models.load(tmp_path / name)[1] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    keys = {"train/images_per_second"}
    rows = [
        [{k: v for k, v in row.items() if k not in keys} for row in read_metrics(tmp_path / n)]
        for n in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_neither_labels_nor_logits_are_needed(unlabeled, tmp_path):
    teacher = own.make_embedding()
    losses = {"lfcc": LFCC, "crd": {"width": 8}, "sp": {"weight": 1.0}}
    config = unlabeled(losses=losses, teacher={}, probe={}, epochs=1)
    summary = train_and_evaluate(config, tmp_path / "run", teacher=teacher)
    assert summary["agreement"] is None
    assert np.isfinite(summary["cka_pooled"])
    described = json.loads((tmp_path / "run" / "student" / "network.json").read_text())
    assert described["num_classes"] == 0


def test_a_teacher_with_other_classes_teaches_by_its_features(tmp_path):
    teacher = models.create("vit_pico", 7, 8, width=12, depth=4)
    variables = jax.jit(teacher.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    overrides = {"width": 12, "depth": 4}
    description = {"name": "vit_pico", "num_classes": 7, "image_size": 8, "overrides": overrides}
    models.save(tmp_path / "teacher", variables, description)
    config = {
        "data": {"name": "noise_4x8", "test_split": "train"},
        "student": {"name": "resnet_pico", "widths": (4, 4, 8, 8)},
        "teacher": {"name": "vit_pico", "checkpoint": str(tmp_path / "teacher")},
        "losses": {"cross_entropy": {}, "lfcc": LFCC},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "epochs": 1,
        "batch_size": 512,
        "mesh": {"data": 2},
    }
    with pytest.raises(
        UserError, match="must be a network with 4 classes, .* got vit_pico with 7; set config.teacher.logits=False"
    ):
        train_and_evaluate(config, tmp_path / "refused")
    config["teacher"] = config["teacher"] | {"logits": False}
    summary = train_and_evaluate(config, tmp_path / "run")
    assert summary["agreement"] is summary["teacher_top1"] is None
    assert np.isfinite(summary["cka_pooled"])
    # The rest of the network is whole.
    bare = models.create("vit_pico", 0, 8, **overrides)
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    pooled = bare.apply(models.load_variables(tmp_path / "teacher", bare), images).features["pooled"]
    np.testing.assert_array_equal(pooled, teacher.apply(variables, images).features["pooled"])


@pytest.mark.parametrize("name", ["cross_entropy", "dkd", "ofa"])
def test_losses_that_need_labels_say_so_before_anything_runs(unlabeled, tmp_path, name):
    with pytest.raises(UserError, match=f"config.losses.{name} needs labels, but the images have none; .* kd, lfcc"):
        train_and_evaluate(unlabeled(losses={name: {}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "noise_4x16", "train_split": "train", "test_split": "test"},
            "config.probe.name must have images of 8 pixels and 1 channels, as config.data.name, got",
        ),
        ({"neighbors": 0}, "config.probe.neighbors must be an integer between 1 and 1000, got 0"),
        ({"neigbors": 3}, "config.probe: unknown .*'neigbors'; did you mean 'neighbors'"),
        ({"name": "digts"}, "unknown data set 'digts'; did you mean 'digits'"),
    ],
)
def test_invalid_probes_are_errors(unlabeled, tmp_path, changes, message):
    config = unlabeled()
    config["probe"] = config["probe"] | changes
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path / "run")


def test_neighbors_vote_with_their_similarities():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)), rng.integers(0, 3, 50)
    test = rng.normal(size=(20, 6))
    similarity = (test / np.linalg.norm(test, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    expected = []
    for row in similarity:
        nearest = np.argsort(-row)[:7]
        votes = np.bincount(y[nearest], np.exp(row[nearest] / 0.07), minlength=3)
        expected.append(votes.argmax())
    np.testing.assert_array_equal(probe.nearest_neighbors(x, y, test, 7), expected)


def test_linear_classifier_separates_what_a_line_separates_and_nothing_else():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)) * [1, 1, 100, 1, 1]
    y = (x[:, 0] > 0).astype(int)
    assert np.mean(probe.linear(x[:300], y[:300], x[300:]) == y[300:]) > 0.95
    noise = rng.integers(0, 2, 400)
    assert 0.3 < np.mean(probe.linear(x[:300], noise[:300], x[300:]) == noise[300:]) < 0.7

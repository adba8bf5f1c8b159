"""Runs with networks that are not the package's."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tests.models.own_networks as own
from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.export import main as export
from lfcc_jax.models import adapters
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.report import read_metrics

FILE = Path(own.__file__)
LOSSES = {"cross_entropy": {}, "lfcc": {"width": 8, "stages": ("stage2", "stage4"), "grids": (1, 2)}}


def config_of(tiny, teacher="make_teacher", student="make_student", **changes):
    config = tiny(losses=LOSSES, ema_decay=0.5, checkpoint_every_steps=3)
    config["student"] = {"name": f"{FILE}:{student}", "width": 4}
    config["teacher"] = {"name": f"{FILE}:{teacher}"}
    return config | changes


def test_nnx_student_of_an_equinox_teacher_stops_resumes_and_teaches(tiny, tmp_path, monkeypatch, capsys):
    config = config_of(tiny)
    summary = train_and_evaluate(config, tmp_path / "whole")
    assert (summary["teacher"], summary["student"]) == (f"{FILE}:make_teacher", f"{FILE}:make_student")
    assert 0 <= summary["teacher_top1"] <= 1
    assert summary["cka_stage4"] is not None

    calls = iter(range(1, 100))
    request = SimpleNamespace(is_set=lambda: next(calls) == 5)
    monkeypatch.setattr("lfcc_jax.train.watch_signals", lambda: contextlib.nullcontext(request))
    with pytest.raises(Preempted, match="stopped at step 5 of 8"):
        train_and_evaluate(config, tmp_path / "stopped")
    monkeypatch.undo()
    train_and_evaluate(config, tmp_path / "stopped")
    whole, stopped = (models.load(tmp_path / name) for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, whole[1], stopped[1])
    rows = [read_metrics(tmp_path / name)[-1] for name in ("whole", "stopped")]
    assert rows[0] | {"train/images_per_second": 0} == rows[1] | {"train/images_per_second": 0}

    # The student changed, statistics too, and works outside the trainer; it teaches a network of the package.
    network, variables = whole
    start = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert not np.array_equal(
        variables["batch_stats"]["norms"]["0"]["mean"], start["batch_stats"]["norms"]["0"]["mean"]
    )
    assert network.apply(variables, jnp.zeros((2, 8, 8, 1))).logits.shape == (2, 10)
    taught = tiny(epochs=0.5, losses={"kd": {}})
    taught["teacher"] = {"name": f"{FILE}:make_student", "checkpoint": str(tmp_path / "whole")}
    assert train_and_evaluate(taught, tmp_path / "taught")["teacher_top1"] == summary["top1_last"]

    # A teacher with other weights is another run.
    monkeypatch.setattr(own.jax.random, "key", lambda seed, key=jax.random.key: key(seed + 1))
    (tmp_path / "stopped" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"already contains a different run: teacher\.digest was"):
        train_and_evaluate(config, tmp_path / "stopped")
    monkeypatch.undo()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="error: .*make_student is not one of timm's networks"):
        export([str(tmp_path / "whole"), "--format=timm", f"--out={tmp_path / 'x.safetensors'}"])


def test_objects_are_taken_from_python(tiny, tmp_path):
    teacher, state = eqx.nn.make_with_state(own.EquinoxNet)(10, 1, jax.random.key(0))
    student = adapters.from_nnx(lambda rngs: own.NNXNet(10, 1, rngs))
    config = tiny(losses=LOSSES | {"kd": {}}, epochs=1)
    del config["student"]
    summary = train_and_evaluate(config, tmp_path, teacher=(teacher, state), student=student)
    assert (summary["teacher"], summary["student"]) == ("python:EquinoxNet", "python:NNXNet")
    assert np.isfinite(summary["kl_to_teacher"])
    wide = adapters.from_nnx(lambda rngs: own.NNXNet(10, 1, rngs, width=8))
    with pytest.raises(UserError, match=r"already contains a different run: student\.digest was"):
        train_and_evaluate(config, tmp_path, teacher=(teacher, state), student=wide)
    again = train_and_evaluate(config, tmp_path, teacher=(teacher, state), student=student)
    assert again == summary
    with pytest.raises(UserError, match="was given as a Python object, python:NNXNet; make it again"):
        models.load(tmp_path)
    variables = models.load_variables(tmp_path, student.for_data(10, 8, 1))
    assert student.apply(variables, jnp.zeros((2, 8, 8, 1))).logits.shape == (2, 10)
    with pytest.raises(UserError, match="config.student must be empty if `student` is given as a Python object"):
        train_and_evaluate(tiny(), tmp_path / "b", student=student)


def test_student_starts_from_the_weights_that_it_came_with(tiny, tmp_path):
    module = own.NNXNet(10, 1, nnx.Rngs(5))
    config = tiny(epochs=0.25, ema_decay=0.0, optimizer={"name": "sgd", "learning_rate": 0.0})
    del config["student"]
    train_and_evaluate(config, tmp_path, student=module)
    variables = models.load_variables(tmp_path, adapters.from_nnx(module).for_data(10, 8, 1))
    np.testing.assert_array_equal(variables["params"]["convs"]["0"]["kernel"], module.convs[0].kernel.get_value())


def test_teacher_without_logits_teaches_by_features(tiny, tmp_path):
    config = config_of(tiny, "make_embedding", losses=LOSSES | {"crd": {"width": 8}}, epochs=1)
    summary = train_and_evaluate(config, tmp_path)
    assert summary["teacher_top1"] is summary["agreement"] is summary["kl_to_teacher"] is None
    assert -1 < summary["cka_pooled"] <= 1  # an unbiased estimate, which may be negative
    assert not [key for row in read_metrics(tmp_path) for key in row if "agreement" in key or "teacher" in key]


def test_saved_network_without_a_classifier_teaches_by_features(tiny, tmp_path):
    settings = {"width": 12, "heads": 3, "image_channels": 1}
    network = models.create("vit_pico", 0, 8, **settings)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    description = {"name": "vit_pico", "num_classes": 0, "image_size": 8, "overrides": settings}
    models.save(tmp_path / "teacher", variables, description)
    teacher = {"name": "vit_pico", "checkpoint": str(tmp_path / "teacher")}
    summary = train_and_evaluate(tiny(teacher=teacher, losses=LOSSES, epochs=0.5), tmp_path / "run")
    assert summary["teacher"] == "vit_pico"
    assert summary["teacher_top1"] is None
    with pytest.raises(UserError, match="config.losses.kd needs the teacher's logits, but vit_pico returns none"):
        train_and_evaluate(tiny(teacher=teacher, losses={"kd": {}}), tmp_path / "kd")


@pytest.mark.parametrize(
    ("teacher", "changes", "message"),
    [
        (
            "make_embedding",
            {"losses": {"kd": {}}},
            "config.losses.kd needs the teacher's logits, but .* returns none; .*lfcc",
        ),
        ("make_embedding", {"losses": {"srrl": {}}}, "config.losses.srrl needs the teacher's logits"),
        ("make_teachers", {}, "unknown function 'make_teachers'; did you mean 'make_teacher'"),
        ("make_nothing", {}, "config.teacher: .*make_nothing must be a Flax Linen or NNX module, .* got 'a string'"),
        (
            "make_error",
            {},
            r"make_error raised KeyError: 'no weights for 10 classes' \(line \d+ of .*own_networks.py\)",
        ),
        ("make_numpy", {}, "must consist of JAX operations"),
        ("make_other_classes", {}, r"must return logits \[batch, 10\] for the 10 classes of the data, got \[2, 7\]"),
        ("make_one_for_all", {}, r"must return logits for each image, \[2, ...\] for 2 images, got \[1, 10\]"),
        ("make_nan", {"losses": {"kd": {}}}, "make_nan cannot be used: .*params.* contains NaN"),
        ("make_student", {}, "config.teacher.checkpoint: missing, and .* or make the network with its weights"),
        (
            "make_embedding",
            {"losses": {"lfcc": {"stages": ("stage9",)}}},
            "unknown stage .stage9.*These are the maps of the student",
        ),
    ],
)
def test_networks_that_do_not_fit_are_rejected_in_one_line(tiny, tmp_path, teacher, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train_and_evaluate(config_of(tiny, teacher, **changes), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": f"{FILE}:make_student", "widht": 4}, "unknown key 'widht'; did you mean 'width'"),
        ({"name": f"{FILE}:make_student", "width": "4"}, "config.student.width must be an integer, got '4'"),
        ({"name": f"{FILE}:make_student", "num_classes": 3}, "num_classes is set by the run"),
        ({"name": "nowhere.py:make"}, "config.student.name: there is no file nowhere.py"),
        ({"name": "no_such_package.networks:make"}, "raised ModuleNotFoundError"),
        ({"name": f"{FILE}:make_embedding"}, r"must return logits \[batch, 10\]"),
        ({"name": "resnet_picco"}, "did you mean 'resnet_pico'.*For a network of your own"),
    ],
)
def test_students_that_do_not_fit_are_rejected_in_one_line(tiny, tmp_path, block, message):
    with pytest.raises(UserError, match=message) as error:
        train_and_evaluate(tiny(student=block), tmp_path)
    assert "\n" not in str(error.value)


def test_saved_student_is_described_by_the_absolute_path_of_its_file(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(FILE.parent)
    config = tiny(student={"name": "own_networks.py:make_student"}, epochs=0.25)
    train_and_evaluate(config, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert json.loads((tmp_path / "student" / "network.json").read_text())["name"] == f"{FILE}:make_student"
    assert models.load(tmp_path)[0].feature_info()["stage4"].channels == 8

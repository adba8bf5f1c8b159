"""Runs with several teachers, one of which may have no logits."""

import contextlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.models.own_networks as own
from lfcc_jax import models
from lfcc_jax.data import Images
from lfcc_jax.errors import UserError
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import build
from lfcc_jax.training.evaluation import Evaluator
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.report import read_metrics
from lfcc_jax.training.sharding import create_mesh, to_global
from lfcc_jax.training.step import make_train_step

EMBEDDING = f"{Path(own.__file__)}:make_embedding"
VIT = {"name": "vit_pico", "width": 12, "depth": 4}
LFCC = {"width": 8, "stages": ("stage2", "stage4"), "grids": (1, 2), "weight": 0.5}
LOSSES = {"cross_entropy": {}, "kd": {"temperature": 2.0}, "lfcc": LFCC}


@pytest.fixture
def two(tiny, teacher_dir):
    """A config with a saved ViT and an embedding without logits as teachers."""

    def make(vit=None, embedding=None, **changes):
        config = tiny(losses=LOSSES, ema_decay=0.5, checkpoint_every_steps=3)
        config["teacher"] = {
            "vit": VIT | {"checkpoint": str(teacher_dir)} | (vit or {}),
            "emb": {"name": EMBEDDING, "weights": {"kd": 0.0, "lfcc": 0.5}} | (embedding or {}),
        }
        return config | changes

    return make


def test_student_of_two_teachers_is_compared_to_both_and_resumes_bit_identical(two, tmp_path, monkeypatch, capsys):
    config = two()
    summary = train_and_evaluate(config, tmp_path / "whole")
    assert summary["teacher"] == f"{EMBEDDING}@emb + vit_pico@vit"
    assert summary["losses"] == "cross_entropy + kd@vit + lfcc@emb + lfcc@vit"
    assert summary["teacher_top1@emb"] is summary["agreement@emb"] is summary["kl_to_teacher@emb"] is None
    for key in ("teacher_top1", "agreement", "kl_to_teacher", "cka_stage4"):
        assert np.isfinite(summary[f"{key}@vit"])
    assert "teacher_top1" not in summary
    assert -1 < summary["cka_pooled@emb"] <= 1
    printed = capsys.readouterr().out
    assert f"learns from {EMBEDDING}@emb + vit_pico@vit by cross_entropy + kd@vit" in printed
    assert "vit's test accuracy is" in printed
    assert "emb's test accuracy" not in printed

    row = read_metrics(tmp_path / "whole")[-1]
    keys = {key for key in row if "@" in key}
    assert keys >= {"train/kd@vit", "train/lfcc@vit", "train/lfcc@emb", "test/agreement@vit", "test/cka@emb/stage1"}
    assert not keys & {"train/kd@emb", "train/cross_entropy@vit", "test/kl@emb"}
    inputs = json.loads((tmp_path / "whole" / "inputs.json").read_text())
    assert {"teacher@vit", "teacher@emb"} < inputs.keys()
    assert inputs["teacher@vit"]["name"] == "vit_pico"
    spectra = json.loads((tmp_path / "whole" / "spectra.json").read_text())
    assert list(spectra) == ["student resnet_pico", f"teacher {EMBEDDING}@emb", "teacher vit_pico@vit"]

    calls = iter(range(1, 100))
    request = SimpleNamespace(is_set=lambda: next(calls) == 5)
    monkeypatch.setattr("lfcc_jax.train.watch_signals", lambda: contextlib.nullcontext(request))
    with pytest.raises(Preempted, match="stopped at step 5 of 8"):
        train_and_evaluate(config, tmp_path / "stopped")
    monkeypatch.undo()
    # The order of the blocks does not matter.
    train_and_evaluate(config | {"teacher": dict(reversed(config["teacher"].items()))}, tmp_path / "stopped")
    whole, stopped = (models.load(tmp_path / name)[1] for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)
    rows = [read_metrics(tmp_path / name)[-1] for name in ("whole", "stopped")]
    assert rows[0] | {"train/images_per_second": 0} == rows[1] | {"train/images_per_second": 0}


def test_some_teachers_are_taken_from_python(two, tmp_path):
    config = two(epochs=0.25)
    config["teacher"]["emb"] = {"weights": {"kd": 0.0}}
    summary = train_and_evaluate(config, tmp_path / "a", teacher={"emb": own.make_embedding()})
    assert re.fullmatch(r"python:\w+@emb \+ vit_pico@vit", summary["teacher"])
    assert summary["losses"] == "cross_entropy + kd@vit + lfcc@emb + lfcc@vit"
    config["teacher"]["emb"] = {"name": EMBEDDING}
    with pytest.raises(UserError, match="config.teacher.emb must be empty except for `weights` if `teacher` is given"):
        train_and_evaluate(config, tmp_path / "b", teacher={"emb": own.make_embedding()})
    config["teacher"] = VIT
    with pytest.raises(UserError, match="config.teacher must be a block per teacher if `teacher` is a dict, got"):
        train_and_evaluate(config, tmp_path / "b", teacher={"emb": own.make_embedding()})


# -- Losses, step and evaluation ---------------------------------------------------------------------------------------

IMAGES = Images(num_classes=10, size=8, channels=1, count=32)


def distillation_of(tiny, teacher, losses=LOSSES):
    optimizer = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0}
    return build(read_config(tiny(teacher=teacher, losses=losses, optimizer=optimizer)), IMAGES)


def batch(size=16):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (size, 8, 8, 1), np.uint8), rng.integers(0, 10, size, np.int32)
    return {"image": images, "label": labels, "mask": np.ones(size, bool)}


def variables_of(network):
    own_weights = getattr(network, "weights", None)
    return jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 1))) if own_weights is None else own_weights


def test_loss_and_gradient_are_sums_over_the_teachers(tiny, monkeypatch):
    calls = []
    teach = make_train_step.__globals__["teach"]
    monkeypatch.setattr("lfcc_jax.training.step.teach", lambda *args: calls.append(args[0]) or teach(*args))
    schedule = {"name": "linear", "start": 0.2, "end": 1.0, "epochs": 1}
    losses = LOSSES | {"lfcc": LFCC | {"weight": schedule}}
    emb = {"name": EMBEDDING, "weights": {"kd": 0.0, "lfcc": 0.5}}
    both = distillation_of(tiny, {"vit": VIT, "emb": emb}, losses)
    variables = {name: variables_of(network) for name, network in both.teachers.items()}
    data = to_global(batch(), create_mesh())
    initial = jax.jit(both.init)(jax.random.key(0))

    def taken(distillation, teacher_variables, heads):
        """Returns the metrics of one step of SGD, and the change of the student, which is minus its gradient."""
        params = {"student": initial.params["student"], "heads": heads}
        collections = {"student": initial.collections["student"], "heads": {name: {} for name in heads}}
        state = initial.replace(
            params=params, collections=collections, opt_state=distillation.optimizer.init(params), step=jnp.int32(2)
        )
        d = distillation
        step = jax.jit(make_train_step(d.student, d.teachers, d.losses, d.weights, d.optimizer))
        after, metrics = step(state, teacher_variables, data)
        change = jax.tree.map(lambda new, old: new - old, after.params["student"], params["student"])
        return jax.device_get(metrics), jax.device_get(change)

    metrics, change = taken(both, variables, initial.params["heads"])
    assert len(calls) == 2  # each teacher once, although three losses read their outputs

    def alone(teacher, losses, own_variables, lfcc):
        names = {name: lfcc if name == "lfcc" else {} for name in losses}
        return taken(distillation_of(tiny, teacher, losses), own_variables, names)

    heads = initial.params["heads"]
    half = losses["lfcc"] | {"weight": schedule | {"start": 0.1, "end": 0.5}}
    plain, base = alone({}, {"cross_entropy": {}}, {}, {})
    vit, of_vit = alone(VIT, losses, {"": variables["vit"]}, heads["lfcc@vit"])
    emb, of_emb = alone(
        {"name": EMBEDDING}, {"cross_entropy": {}, "lfcc": half}, {"": variables["emb"]}, heads["lfcc@emb"]
    )
    for name, value in {
        "cross_entropy": plain["cross_entropy"],
        "kd@vit": vit["kd"],
        "lfcc@vit": vit["lfcc"],
        "lfcc@emb": emb["lfcc"],
        "loss": vit["loss"] + emb["loss"] - plain["loss"],
        "accuracy": plain["accuracy"],
    }.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    # Step 2 of the 4 over which the weight of LFCC grows.
    weighted = metrics["cross_entropy"] + metrics["kd@vit"] + 0.6 * metrics["lfcc@vit"] + 0.3 * metrics["lfcc@emb"]
    np.testing.assert_allclose(metrics["loss"], weighted, rtol=1e-5)
    assert abs(metrics["lfcc@vit"] / metrics["lfcc@emb"] - 1) > 1e-3
    expected = jax.tree.map(lambda a, b, c: a + b - c, of_vit, of_emb, base)
    for x, y in zip(*map(jax.tree.leaves, (change, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * max(np.abs(y).max(), 1e-3))
    difference = sum(np.abs(x - y).sum() for x, y in zip(*map(jax.tree.leaves, (change, of_vit)), strict=True))
    assert difference > 0.1  # negative control: the second teacher contributes


def test_weight_of_zero_leaves_the_pair_out(tiny):
    def program(teacher, losses):
        distillation = distillation_of(tiny, teacher, losses)
        mesh = create_mesh()
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch().items() if n != "mask"}
        text = distillation.train_step(mesh).lower(*distillation.step_arguments(mesh), shapes).as_text()
        return text, distillation.losses.keys(), jax.tree.structure(distillation.state_shapes())

    emb = {"name": EMBEDDING}
    off = {"weights": {"kd": 0.0}}
    assert program({"vit": VIT | off, "emb": emb | off}, LOSSES) == program(
        {"vit": VIT, "emb": emb}, {name: LOSSES[name] for name in ("cross_entropy", "lfcc")}
    )
    assert program(VIT | off, LOSSES) == program(VIT, {name: LOSSES[name] for name in ("cross_entropy", "lfcc")})


def test_single_teacher_keeps_plain_names_and_takes_weights(tiny):
    distillation = distillation_of(tiny, VIT | {"weights": {"lfcc": 0.5}})
    assert list(distillation.losses) == ["cross_entropy", "kd", "lfcc"]
    assert [float(distillation.weights[name](0)) for name in distillation.losses] == [1.0, 1.0, 0.25]
    assert list(distillation.teachers) == [""]


def test_empty_name_and_checkpoint_of_a_config_leave_room_for_several_teachers(tiny):
    teacher = {"name": "", "checkpoint": "", "vit": VIT, "mixer": {"name": "mixer_pico"}}
    assert list(read_config(tiny(teacher=teacher)).teachers) == ["mixer", "vit"]
    assert read_config(tiny(teacher={"name": "", "checkpoint": ""})).teachers == {}


def test_evaluation_of_several_teachers_matches_that_of_each_alone(tiny):
    distillation = distillation_of(tiny, {"vit": VIT, "emb": {"name": EMBEDDING, "weights": {"kd": 0.0}}})
    student, teachers = distillation.student, distillation.teachers
    variables, of_teachers = variables_of(student), {name: variables_of(each) for name, each in teachers.items()}

    def evaluate(teachers, of_teachers):
        evaluator = Evaluator(student, teachers, of_teachers, lambda: [batch(), batch(8)], create_mesh())
        first = evaluator(variables)
        assert evaluator(variables) == first  # with the teachers' predictions kept
        return first

    expected = {}
    for name, network in teachers.items():
        for key, value in evaluate({"": network}, {"": of_teachers[name]}).items():
            metric, slash, rest = key.partition("/")
            compared = metric in ("teacher_accuracy", "agreement", "kl", "cka")
            expected[f"{metric}@{name}{slash}{rest}" if compared else key] = value
    got = evaluate(teachers, of_teachers)
    assert got.keys() == expected.keys()
    assert {"teacher_accuracy@vit", "kl@vit", "cka@vit/stage4", "cka@emb/pooled"} < got.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-6, err_msg=key)


def test_teachers_of_a_baseline_are_only_compared_and_need_no_checkpoint(two, tmp_path):
    config = two(losses={"cross_entropy": {}}, vit={"checkpoint": ""}, embedding={"weights": {}}, epochs=0.25)
    summary = train_and_evaluate(config, tmp_path)
    assert (summary["teacher"], summary["losses"]) == (f"{EMBEDDING}@emb", "cross_entropy")  # it has its weights


# -- Errors ------------------------------------------------------------------------------------------------------------

WEIGHT = "must be a non-negative number, got"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embedding": {"weights": {}}},
            "config.losses.kd needs the teacher's logits, but .*make_embedding@emb returns none; set "
            "config.teacher.emb.weights.kd=0.0, or use losses that need none: at, ",
        ),
        (
            {"vit": {"weights": {"lfc": 0.0}}},
            "config.teacher.vit.weights: unknown method 'lfc'; did you mean 'lfcc'?",
        ),
        (
            {"vit": {"weights": {"rkd": 0.0}}},
            "config.teacher.vit.weights.rkd: config.losses must contain rkd, got cross_entropy, kd, lfcc",
        ),
        (
            {"vit": {"weights": {"cross_entropy": 0.0}}},
            "config.teacher.vit.weights.cross_entropy: cross_entropy needs no teacher; set config.losses.cross_entropy",
        ),
        *(
            ({"vit": {"weights": {"kd": value}}}, f"config.teacher.vit.weights.kd {WEIGHT} ")
            for value in (-1.0, math.inf, math.nan, "1", True, {"name": "constant", "value": 1.0})
        ),
        ({"vit": {"weights": 0.0}}, "config.teacher.vit.weights must be a block of settings, got 0.0"),
        (
            {"vit": {"weights": {"kd": 0.0, "lfcc": 0.0}}},
            "config.teacher.vit.weights must be positive for at least one of kd, lfcc, got .*; leave out a teacher",
        ),
        ({"vit": {"checkpoint": ""}}, "config.teacher.vit.checkpoint: missing, and config.losses.kd needs a teacher"),
        ({"vit": {"checkpoint": 5}}, "`config.teacher.vit.checkpoint` must be a path, got 5"),
        ({"vit": {"name": "vit_pcio"}}, "unknown network 'vit_pcio'; did you mean 'vit_pico'?"),
        ({"vit": {"wieghts": {}}}, "config.teacher.vit: unknown key 'wieghts'; did you mean 'weights'?"),
        (
            {"embedding": {"features": "none"}},
            "config.teacher.emb: config.losses.lfcc.stages: unknown stage 'stage2'.* These are the maps of the "
            "teacher. config.teacher.emb.weights.lfcc=0.0 leaves it out.",
        ),
        ({"teacher": {"vit": VIT, "mixer": 5}}, "config.teacher.mixer must be a block of settings, got 5"),
        ({"teacher": {"vit": {"width": 12}}}, "config.teacher.vit: missing name, for example 'resnet18'"),
        ({"teacher": {"a/b": VIT}}, "config.teacher must be one teacher with a `name`, or a block per .*, got 'a/b'"),
        ({"teacher": VIT | {"dino": VIT}}, "config.teacher.name must be empty .* as dino does, got 'vit_pico'"),
        ({"student": {"name": "resnet_pico", "weights": {}}}, "config.student: unknown key 'weights'"),
    ],
)
def test_invalid_teachers_are_rejected_in_one_line(two, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train_and_evaluate(two(**changes), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "checkpoints").exists()

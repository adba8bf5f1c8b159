import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.train import DivergedError, train_and_evaluate
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.report import read_metrics


def student_of(workdir, config):
    block = dict(config["student"])
    network = models.create(block.pop("name"), 10, 8, image_channels=1, **block)
    return jax.tree.map(np.array, models.load_variables(workdir, network))


def assert_same_student(workdir, other, config):
    jax.tree.map(np.testing.assert_array_equal, student_of(workdir, config), student_of(other, config))


def hash_of(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_student_is_initialized_from_a_checkpoint_and_trained(tiny, teacher_dir, tmp_path):
    student = {"name": "vit_pico", "width": 12, "depth": 4, "checkpoint": str(teacher_dir)}
    config = tiny(student=student, ema_decay=0.5, epochs=1)
    config["data"]["augmentation"] = {"flip": True, "mixup": 0.8, "cutmix": 1.0}
    before = hash_of(teacher_dir)
    train_and_evaluate(config, tmp_path)
    assert hash_of(teacher_dir) == before
    rows = read_metrics(tmp_path)
    assert rows[0]["test/loss"] == read_metrics(teacher_dir)[-1]["test/loss"]
    assert rows[-1]["test/loss"] != rows[0]["test/loss"]
    fresh = tiny(student=student | {"checkpoint": ""}, ema_decay=0.5, epochs=1)
    train_and_evaluate(fresh, tmp_path / "fresh")
    assert read_metrics(tmp_path / "fresh")[0]["test/loss"] != rows[0]["test/loss"]
    with pytest.raises(UserError, match="no finished network in"):
        train_and_evaluate(tiny(student=student | {"checkpoint": str(tmp_path / "none")}), tmp_path / "c")
    with pytest.raises(UserError, match="not this ResNet"):
        train_and_evaluate(tiny(student={"name": "resnet_pico", "checkpoint": str(teacher_dir)}), tmp_path / "d")


@pytest.fixture(scope="module")
def finished(distilled, teacher_dir, tmp_path_factory):
    """The work directory of a finished run of `distilled()`, its summary, and what it printed."""
    workdir, printed, before = tmp_path_factory.mktemp("finished"), io.StringIO(), hash_of(teacher_dir)
    with contextlib.redirect_stdout(printed):
        summary = train_and_evaluate(distilled(), workdir)
    assert hash_of(teacher_dir) == before
    return workdir, summary, printed.getvalue()


def test_heterogeneous_teacher_is_distilled_into_a_student(finished, teacher_dir):
    workdir, summary, printed = finished
    assert (summary["teacher"], summary["student"]) == ("vit_pico", "resnet_pico")
    assert summary["steps"] == 8
    assert summary["head_parameters"] > 0
    assert 0 <= summary["agreement"] <= 1
    assert summary["top1_last"] <= summary["top5_last"] <= 1
    for name in ("calibration_error", "kl_to_teacher", "cka_stage1", "cka_stage4"):
        assert np.isfinite(summary[name])
    # The teacher has the accuracy of its last evaluation.
    assert summary["teacher_top1"] == json.loads((teacher_dir / "summary.json").read_text())["top1_last"]

    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8]
    for term in ("loss", "cross_entropy", "kd", "lfcc", "accuracy", "grad_norm", "learning_rate"):
        assert np.isfinite(rows[-1][f"train/{term}"])
    assert {p.name for p in workdir.iterdir()} >= {
        *("config.json", "checkpoints", "metrics.jsonl", "student", "summary.json", "spectra.json"),
        *("learning_curves.png", "spectra.png"),
    }
    assert "Total:" in printed
    assert "the teacher's test accuracy is" in printed
    assert "step 8/8  epoch 2.0  loss" in printed
    assert "left" in printed


def test_training_is_deterministic_and_depends_on_the_seed(distilled, finished, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        train_and_evaluate(distilled(seed=seed), tmp_path / name)
    assert_same_student(finished[0], tmp_path / "same", distilled())
    with pytest.raises(AssertionError):
        assert_same_student(finished[0], tmp_path / "other", distilled())


def test_finished_run_returns_its_summary(distilled, finished, capsys):
    workdir, summary, _ = finished
    before = hash_of(workdir / "student")
    assert train_and_evaluate(distilled(), workdir) == summary
    assert hash_of(workdir / "student") == before
    assert "has already finished" in capsys.readouterr().out


def test_finished_run_needs_neither_its_teacher_nor_its_data(distilled, teacher_dir, tmp_path):
    shutil.copytree(teacher_dir / "student", tmp_path / "teacher")
    config = distilled(epochs=0.25)
    config["teacher"] |= {"checkpoint": str(tmp_path / "teacher")}
    config["data"] |= {"data_dir": str(shutil.copytree(config["data"]["data_dir"], tmp_path / "data"))}
    summary = train_and_evaluate(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    shutil.rmtree(tmp_path / "data")
    assert train_and_evaluate(config, tmp_path / "run") == summary


def test_moving_average_is_evaluated_and_exported(tiny, tmp_path):
    train_and_evaluate(tiny(ema_decay=0.999), tmp_path / "averaged")
    train_and_evaluate(tiny(), tmp_path / "plain")
    averaged, plain = (student_of(tmp_path / name, tiny()) for name in ("averaged", "plain"))
    kernel = averaged["params"]["head"]["kernel"], plain["params"]["head"]["kernel"]
    assert not np.array_equal(*kernel)


def test_bfloat16_training_keeps_float32_weights(distilled, tmp_path):
    summary = train_and_evaluate(distilled(dtype="bfloat16"), tmp_path)
    assert np.isfinite([row["train/loss"] for row in read_metrics(tmp_path)[1:]]).all()
    assert {x.dtype for x in jax.tree.leaves(student_of(tmp_path, distilled()))} == {np.dtype("float32")}
    assert summary["steps"] == 8


def test_baseline_needs_no_teacher_checkpoint(distilled, tmp_path):
    config = distilled(losses={"cross_entropy": {}}, epochs=1)
    del config["teacher"]["checkpoint"]
    summary = train_and_evaluate(config, tmp_path)
    assert (summary["teacher"], summary["agreement"], summary["steps"]) == (None, None, 4)


# -- Stopping and resuming ---------------------------------------------------------------------------------------------

SLOW = {"epochs": 8, "log_every_steps": 1, "checkpoint_every_steps": 3, "eval_every_epochs": 3}
# What a run of 32 steps is doing when it is interrupted, in this order, resumed after each.
INTERRUPTIONS = {
    "compiled": signal.SIGKILL,
    "step 8": signal.SIGKILL,
    "epoch 3: test": signal.SIGKILL,
    "step 16": signal.SIGINT,
    "step 24": signal.SIGTERM,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the command line on a config in a new process."""
    directory = tmp_path_factory.mktemp("configs")

    def start(config, workdir):
        file = directory / "config.py"
        file.write_text(
            f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config!r})\n"
        )
        command = [sys.executable, "-m", "lfcc_jax.main", f"--config={file}", f"--workdir={workdir}"]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


@pytest.mark.parametrize(
    "moments",
    [("step 8", "step 24"), pytest.param(tuple(INTERRUPTIONS), marks=pytest.mark.exhaustive)],
    ids=["twice", "five times"],
)
def test_interrupted_run_ends_bit_identical_to_an_uninterrupted_one(distilled, tmp_path, start, moments):
    config = distilled(**SLOW)
    config["losses"]["crd_bank"] = {"width": 8, "num_negatives": 16}  # keeps state between steps
    uninterrupted, workdir = tmp_path / "uninterrupted", tmp_path / "interrupted"
    start(config, uninterrupted).communicate()

    for moment in moments:
        process, sent_signal = start(config, workdir), INTERRUPTIONS[moment]
        if moment.startswith("step"):  # not every step gets a line
            wanted = int(moment.split()[1])
            while process.poll() is None and not any(row["step"] >= wanted for row in read_metrics(workdir)):
                time.sleep(0.01)
        else:
            next(line for line in process.stdout if line.startswith(moment))
        process.send_signal(sent_signal)
        output, errors = process.communicate()
        assert not (workdir / "summary.json").exists(), "the run finished before it was stopped"
        assert process.returncode == (-signal.SIGKILL if sent_signal == signal.SIGKILL else 143), errors
        if sent_signal != signal.SIGKILL:
            assert errors.count("stopping after the steps in progress") == 1
            saved = int(errors.split("stopped at step ")[1].split()[0])
            assert saved >= wanted
            assert (workdir / "checkpoints" / str(saved)).exists()

    process = start(config, workdir)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert re.search(r"resuming .* from step", output)
    assert_same_student(uninterrupted, workdir, config)
    # No row is missing or duplicated.
    ours, theirs = ([row["step"] for row in read_metrics(path)] for path in (workdir, uninterrupted))
    assert sorted(set(ours)) == ours == theirs


def test_run_with_a_damaged_newest_checkpoint_resumes_from_the_one_before(distilled, tmp_path, capsys, monkeypatch):
    config = distilled(**SLOW | {"epochs": 6})
    stop_at(monkeypatch, 10)
    with pytest.raises(Preempted, match="stopped at step 10 of 24"):
        train_and_evaluate(config, tmp_path / "stopped")
    monkeypatch.undo()
    for file in (tmp_path / "stopped" / "checkpoints" / "10").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-20])
    train_and_evaluate(config, tmp_path / "stopped")
    assert f"resuming {tmp_path / 'stopped'} from step 9" in capsys.readouterr().out
    train_and_evaluate(config, tmp_path / "whole")
    assert_same_student(tmp_path / "whole", tmp_path / "stopped", config)


def stop_at(monkeypatch, step):
    """Simulates SIGTERM during `step`."""
    count = iter(range(1, 1000))
    request = SimpleNamespace(is_set=lambda: next(count) == step)
    monkeypatch.setattr("lfcc_jax.train.watch_signals", lambda: contextlib.nullcontext(request))


# -- Errors ------------------------------------------------------------------------------------------------------------


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    optimizer = {"name": "sgd", "learning_rate": {"name": "linear", "start": 0.0, "end": 1e30, "epochs": 0.5}}
    config = tiny(optimizer=optimizer, epochs=4, checkpoint_every_steps=1, log_every_steps=100)
    with pytest.raises(DivergedError, match="would diverge again") as error:
        train_and_evaluate(config, tmp_path)
    message = str(error.value)
    bad, good = map(int, re.match(r"(?:after )?step (\d).*; the last checkpoint is at step (\d)\.", message).groups())
    assert good == bad - 1
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == good
    assert not (tmp_path / "student").exists()


def test_train_rejects_a_teacher_that_does_not_match_the_config(distilled, teacher_dir, tmp_path):
    teacher = {"name": "mixer_pico", "checkpoint": str(teacher_dir)}
    with pytest.raises(UserError, match="holds a vit_pico with 10 classes, not this Mixer") as error:
        train_and_evaluate(distilled(teacher=teacher), tmp_path)
    assert re.search(r"params/.* is missing; .*; and \d+ more", str(error.value))


def test_train_rejects_the_work_directory_of_another_run_unchanged(tiny, tmp_path):
    train_and_evaluate(tiny(), tmp_path)
    before = hash_of(tmp_path)
    with pytest.raises(UserError, match=r"already contains a different run: config\.seed was unset, now 1"):
        train_and_evaluate(tiny(seed=1), tmp_path)
    assert hash_of(tmp_path) == before

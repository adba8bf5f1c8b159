"""Files of a run: only finite numbers are saved, and damaged or replaced files are handled."""

import json
import shutil

import numpy as np
import pytest
from test_train import assert_same_student, stop_at

from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.train import DivergedError, train_and_evaluate
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.report import read_metrics


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """The config and work directory of a run of 8 steps without a teacher, with rows every 3 and every 4 steps."""
    config = {
        "data": {"name": "digits", "train_split": "train[:32]", "test_split": "test[:20]", "data_dir": data_dir},
        "student": {"name": "resnet_pico", "widths": (4, 4, 8, 8)},
        "losses": {"cross_entropy": {}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "epochs": 2,
        "batch_size": 8,
        "log_every_steps": 3,
    }
    workdir = tmp_path_factory.mktemp("finished")
    train_and_evaluate(config, workdir)
    return config, workdir


def rows_of(workdir):
    """Returns the rows of `metrics.jsonl` without speeds."""
    return [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in read_metrics(workdir)]


def read_strict_json(file):
    """Reads JSON, with NaN and Infinity as errors."""

    def reject(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(file.read_text(), parse_constant=reject)


# -- Divergence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "learning_rate", "message"),
    [
        (1e3, 3e38, r"after step 1, .* contains NaN or infinity; nothing was saved"),
        (1.0, 1e36, r"the evaluation after step 1: .*loss is (nan|inf); nothing was saved"),
    ],
)
def test_run_fails_if_the_last_update_diverges(tiny, tmp_path, weight, learning_rate, message):
    optimizer = {"name": "sgd", "learning_rate": learning_rate}
    config = tiny(optimizer=optimizer, losses={"cross_entropy": {"weight": weight}}, epochs=0.25)
    with pytest.raises(DivergedError, match=message) as error:
        train_and_evaluate(config, tmp_path)
    assert "\n" not in str(error.value)
    assert "would diverge again" in str(error.value)
    assert not (tmp_path / "student").exists()
    assert not (tmp_path / "summary.json").exists()
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


# -- Damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", *(pytest.param(c, marks=pytest.mark.exhaustive) for c in ("{", "null"))])
def test_damaged_summary_is_rewritten(finished, tmp_path, content):
    config, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").write_text(content)
    if content == "":
        (tmp_path / "student" / "network.json").write_text("")
    train_and_evaluate(config, tmp_path)
    ours, theirs = (read_strict_json(path / "summary.json") for path in (tmp_path, workdir))
    assert ours | {"date": ""} == theirs | {"date": ""}
    assert rows_of(tmp_path) == rows_of(workdir)
    assert_same_student(tmp_path, workdir, config)


def test_damaged_rows_are_skipped_and_the_last_evaluation_is_repeated(finished, tmp_path, capsys):
    config, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 3, 4, 6, 8]
    lines[1], lines[4] = lines[1].replace(b":", b"\xff"), lines[4][: len(lines[4]) // 2]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    summary = train_and_evaluate(config, tmp_path)
    assert "metrics.jsonl: skipped damaged lines 2\n" in capsys.readouterr().out
    whole = read_strict_json(workdir / "summary.json")
    speed = dict.fromkeys(("date", "seconds_per_step", "images_per_second"))
    assert summary | speed == whole | speed
    kept, everything = rows_of(tmp_path), rows_of(workdir)
    assert kept[:3] == [everything[0], *everything[2:4]]
    # The row of the last step has lost its training metrics, but has the same evaluation.
    assert kept[3].items() <= everything[4].items()
    assert kept[3]["test/accuracy"] == whole["top1_last"]


def test_run_without_rows_finishes(finished, tmp_path):
    config, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("")
    summary = train_and_evaluate(config, tmp_path)
    assert (summary["top1_last"], summary["best_step"]) == (read_strict_json(workdir / "summary.json")["top1_last"], 8)
    assert summary["seconds_per_step"] is None


def test_train_reports_a_damaged_config_in_one_line(finished, tmp_path):
    config, _ = finished
    for content in ("{", "[1]", "[" * 100000):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json is damaged") as error:
            train_and_evaluate(config, tmp_path)
        assert "\n" not in str(error.value)


# -- Stopping and resuming ---------------------------------------------------------------------------------------------


def test_resumed_run_has_the_rows_of_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    config, workdir = finished
    for step in (2, 5):
        stop_at(monkeypatch, step if step == 2 else step - 2)
        with pytest.raises(Preempted, match=f"stopped at step {step} of 8"):
            train_and_evaluate(config, tmp_path)
        monkeypatch.undo()
    train_and_evaluate(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(workdir)
    assert_same_student(tmp_path, workdir, config)
    # Control: the rows contain means over several steps.
    assert len({row["train/loss"] for row in rows_of(workdir)[1:]}) == 4


def test_train_rejects_a_replaced_teacher(distilled, teacher_dir, tmp_path, monkeypatch):
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_dir / "student", teacher)
    config = distilled()
    config["teacher"]["checkpoint"] = str(teacher)
    stop_at(monkeypatch, 1)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path / "run")
    monkeypatch.undo()

    _, variables = models.load(teacher)
    original = models.describe(teacher)
    other = variables | {"params": variables["params"] | {"pos_embed": variables["params"]["pos_embed"] + 1.0}}
    for new_variables, description in (
        (other, original),
        (variables, original | {"overrides": original["overrides"] | {"mean": [0.4]}}),
    ):
        models.save(teacher, new_variables, description)
        with pytest.raises(UserError, match=r"teacher\.digest was \w+, now \w+; choose another --workdir") as error:
            train_and_evaluate(config, tmp_path / "run")
        assert "\n" not in str(error.value)
    models.save(teacher, variables, original)  # the same network, rewritten
    assert np.isfinite(train_and_evaluate(config, tmp_path / "run")["top1_last"])

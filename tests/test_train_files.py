"""What a run leaves on disk: only finite numbers, and a way on if some of it is damaged or was replaced."""

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
def ended(data_dir, tmp_path_factory):
    """The config and the work directory of a run without a teacher, of 8 steps with a row every 3 and every 4."""
    config = {
        "data": {"name": "digits", "train_split": "train[:32]", "test_split": "test[:20]", "data_dir": data_dir},
        "student": {"name": "resnet_pico", "widths": (4, 4, 8, 8)},
        "losses": {"cross_entropy": {}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "epochs": 2,
        "batch_size": 8,
        "log_every_steps": 3,
    }
    workdir = tmp_path_factory.mktemp("ended")
    train_and_evaluate(config, workdir)
    return config, workdir


def rows_of(workdir):
    """The rows of `metrics.jsonl` without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in read_metrics(workdir)]


def strict(file):
    """Reads JSON as other programs do: NaN and Infinity are errors."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(file.read_text(), parse_constant=refuse)


# -- Finite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "learning_rate", "message"),
    [
        (1e3, 3e38, r"after step 1, .* contains NaN or infinity; nothing was saved"),
        (1.0, 1e36, r"the evaluation after step 1: .*loss is (nan|inf); nothing was saved"),
    ],
)
def test_a_last_update_that_ruins_the_weights_fails_the_run(tiny, tmp_path, weight, learning_rate, message):
    optimizer = {"name": "sgd", "learning_rate": learning_rate}
    config = tiny(optimizer=optimizer, losses={"cross_entropy": {"weight": weight}}, epochs=0.25)
    with pytest.raises(DivergedError, match=message) as error:
        train_and_evaluate(config, tmp_path)
    assert "\n" not in str(error.value)
    assert "would end here again" in str(error.value)
    assert not (tmp_path / "student").exists()
    assert not (tmp_path / "summary.json").exists()
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


# -- Damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "null"])
def test_a_damaged_summary_is_written_again(ended, tmp_path, content):
    config, workdir = ended
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").write_text(content)
    if content == "":
        (tmp_path / "student" / "network.json").write_text("")
    train_and_evaluate(config, tmp_path)
    mine, theirs = (strict(path / "summary.json") for path in (tmp_path, workdir))
    assert mine | {"date": ""} == theirs | {"date": ""}
    assert rows_of(tmp_path) == rows_of(workdir)
    assert_same_student(tmp_path, workdir, config)


def test_damaged_rows_cost_nothing_else_and_the_last_evaluation_is_repeated(ended, tmp_path, capsys):
    config, workdir = ended
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 3, 4, 6, 8]
    lines[1], lines[4] = lines[1].replace(b":", b"\xff"), lines[4][: len(lines[4]) // 2]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    summary = train_and_evaluate(config, tmp_path)
    assert "metrics.jsonl: skipped damaged lines 2\n" in capsys.readouterr().out
    whole = strict(workdir / "summary.json")
    of_speed = dict.fromkeys(("date", "seconds_per_step", "images_per_second"))
    assert summary | of_speed == whole | of_speed
    kept, everything = rows_of(tmp_path), rows_of(workdir)
    assert kept[:3] == [everything[0], *everything[2:4]]
    # The row of the last step has no training metrics any more, but the same evaluation.
    assert kept[3].items() <= everything[4].items()
    assert kept[3]["test/accuracy"] == whole["top1_last"]


def test_a_run_without_any_rows_still_ends(ended, tmp_path):
    config, workdir = ended
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("")
    summary = train_and_evaluate(config, tmp_path)
    assert (summary["top1_last"], summary["best_step"]) == (strict(workdir / "summary.json")["top1_last"], 8)
    assert summary["seconds_per_step"] is None


def test_a_damaged_config_is_refused_in_one_line(ended, tmp_path):
    config, _ = ended
    for content in ("{", "[1]", "[" * 100000):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json is damaged") as error:
            train_and_evaluate(config, tmp_path)
        assert "\n" not in str(error.value)


# -- Stopping and resuming ---------------------------------------------------------------------------------------------


def test_rows_of_a_stopped_and_resumed_run_are_those_of_an_undisturbed_one(ended, tmp_path, monkeypatch):
    config, workdir = ended
    for step in (2, 5):
        stop_at(monkeypatch, step if step == 2 else step - 2)
        with pytest.raises(Preempted, match=f"stopped at step {step} of 8"):
            train_and_evaluate(config, tmp_path)
        monkeypatch.undo()
    train_and_evaluate(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(workdir)
    assert_same_student(tmp_path, workdir, config)
    # What is compared has means over several steps in it.
    assert len({row["train/loss"] for row in rows_of(workdir)[1:]}) == 4


def test_a_teacher_that_was_replaced_is_refused(distilled, teacher_dir, tmp_path, monkeypatch):
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_dir / "student", teacher)
    config = distilled()
    config["teacher"]["checkpoint"] = str(teacher)
    stop_at(monkeypatch, 1)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path / "run")
    monkeypatch.undo()

    _, variables = models.load(teacher)
    made = models.describe(teacher)
    other = variables | {"params": variables["params"] | {"pos_embed": variables["params"]["pos_embed"] + 1.0}}
    for variables_now, description in (
        (other, made),
        (variables, made | {"overrides": made["overrides"] | {"mean": [0.4]}}),
    ):
        models.save(teacher, variables_now, description)
        with pytest.raises(UserError, match=r"teacher\.digest was \w+, now \w+; choose another --workdir") as error:
            train_and_evaluate(config, tmp_path / "run")
        assert "\n" not in str(error.value)
    models.save(teacher, variables, made)  # the same network, written again
    assert np.isfinite(train_and_evaluate(config, tmp_path / "run")["top1_last"])

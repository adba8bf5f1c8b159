"""The launcher of TPU slices, with a `gcloud` that only writes down what it is asked: no slice is at hand."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "tpu" / "vm.sh"
GCLOUD = """#!/usr/bin/env bash
echo "$4 ${@:5}" >> "$FAKE/calls"
case "$4" in
    describe) cat "$FAKE/state" ;;
    create) if [[ -e "$FAKE/none_left" ]]; then rm "$FAKE/none_left"; exit 1; fi
            echo READY > "$FAKE/state" ;;
    scp) if [[ -e "$FAKE/taken_back" ]]; then rm "$FAKE/taken_back"; echo PREEMPTED > "$FAKE/state"; exit 1; fi ;;
    delete) : > "$FAKE/state" ;;
    ssh) if [[ "$*" == *lfcc_jax.main* ]]; then
            read -r outcome < "$FAKE/outcomes"; sed -i 1d "$FAKE/outcomes"
            [[ $outcome == preempted ]] && echo PREEMPTED > "$FAKE/state"
            [[ $outcome == ends ]]
         fi ;;
esac
"""


def launch(tmp_path, outcomes, *arguments, **environment):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "state").write_text("")
    (tmp_path / "outcomes").write_text("\n".join(outcomes) + "\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    given = arguments or ("name", "zone", "v5litepod-16", "gs://b/run", "--", "--config=configs/digits.py:method=kd")
    done = subprocess.run(
        ["bash", SCRIPT, *given],
        env=os.environ | {"PATH": path, "FAKE": str(tmp_path), "TPU_VM_WAIT": "0"} | environment,
        cwd=SCRIPT.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return done, [line.split()[0] for line in calls if line.split() and not line.startswith((" ", "describe"))], calls


def test_a_slice_is_made_and_the_run_started_on_all_workers(tmp_path):
    done, verbs, calls = launch(tmp_path, ["ends"])
    assert done.returncode == 0, done.stderr
    assert [verb for verb in verbs if verb in ("create", "scp", "ssh", "delete")] == ["create", "scp", "ssh", "ssh"]
    command = next(line for line in calls if "lfcc_jax.main" in line)
    assert "--worker=all" in command
    assert "--distributed --workdir=gs://b/run --config=configs/digits.py:method=kd" in command


def test_arguments_reach_the_workers_as_they_were_given(tmp_path):
    given = ["gs://b/a run;touch x", "--", "--config=c.py:method=kd", "--config.student.name=it's"]
    done, _, calls = launch(tmp_path, ["ends"], "name", "zone", "v5litepod-16", *given)
    assert done.returncode == 0, done.stderr
    command = next(line for line in calls if "lfcc_jax.main" in line)
    words = shlex.split(command[command.index("-m lfcc_jax.main") :])
    assert words[2:] == ["--distributed", f"--workdir={given[0]}", *given[2:]]


def test_setup_runs_on_all_workers_before_the_run(tmp_path):
    done, _, calls = launch(tmp_path, ["ends"], TPU_VM_SETUP="fetch-data ~/tensorflow_datasets")
    assert done.returncode == 0, done.stderr
    setup, run = (next(i for i, line in enumerate(calls) if part in line) for part in ("fetch-data", "lfcc_jax.main"))
    assert setup < run
    assert "--worker=all --command=fetch-data ~/tensorflow_datasets" in calls[setup]


def test_a_work_directory_outside_a_bucket_is_refused(tmp_path):
    done, _, calls = launch(tmp_path, [], "name", "zone", "v5litepod-16", "runs/x", "--", "--config=c.py")
    assert done.returncode == 2
    assert done.stderr == "BUCKET must be gs://BUCKET/DIRECTORY, got 'runs/x'\n"
    assert not calls


def test_after_a_preemption_a_new_slice_goes_on(tmp_path):
    done, verbs, _ = launch(tmp_path, ["preempted", "ends"])
    assert done.returncode == 0, done.stderr
    made = [verb for verb in verbs if verb in ("create", "delete")]
    assert made == ["create", "delete", "create"]
    assert "was taken back" in done.stderr


def test_a_run_that_fails_by_itself_is_not_repeated(tmp_path):
    done, verbs, _ = launch(tmp_path, ["fails", "ends"])
    assert done.returncode == 1
    assert verbs.count("create") == 1
    assert "the run failed" in done.stderr


def test_a_slice_that_cannot_be_had_yet_or_is_taken_back_at_once_is_asked_for_again(tmp_path):
    (tmp_path / "none_left").touch()
    (tmp_path / "taken_back").touch()
    done, verbs, _ = launch(tmp_path, ["ends"])
    assert done.returncode == 0, done.stderr
    made = [verb for verb in verbs if verb in ("create", "delete")]
    assert made == ["create", "create", "delete", "create"]
    assert "name could not be made; again in 0 s" in done.stderr


@pytest.mark.parametrize("arguments", [("name", "zone"), ("name", "zone", "type", "gs://b", "--config=x", "y")])
def test_a_command_that_lacks_something_is_told_how(tmp_path, arguments):
    done, _, calls = launch(tmp_path, [], *arguments)
    assert done.returncode == 2
    assert "experiments/tpu/vm.sh NAME ZONE TYPE BUCKET --" in done.stderr
    assert not calls

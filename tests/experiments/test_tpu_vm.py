"""The launcher of TPU slices, with a `gcloud` that only writes down what it is asked: no slice is at hand."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "tpu_vm.sh"
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


def launch(tmp_path, outcomes, *arguments):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "state").write_text("")
    (tmp_path / "outcomes").write_text("\n".join(outcomes) + "\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    given = arguments or ("name", "zone", "v5litepod-16", "gs://b/run", "--", "--config=configs/digits.py:method=kd")
    done = subprocess.run(
        ["bash", SCRIPT, *given],
        env=os.environ | {"PATH": path, "FAKE": str(tmp_path), "TPU_VM_WAIT": "0"},
        cwd=SCRIPT.parents[1],
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
    assert "experiments/tpu_vm.sh NAME ZONE TYPE BUCKET --" in done.stderr
    assert not calls

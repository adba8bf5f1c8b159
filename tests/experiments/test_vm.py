"""The launcher of TPU slices, with a fake `gcloud` that records its calls."""

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
    create) if [[ -e "$FAKE/unavailable" ]]; then rm "$FAKE/unavailable"; exit 1; fi
            echo READY > "$FAKE/state" ;;
    scp) if [[ -e "$FAKE/preempted" ]]; then rm "$FAKE/preempted"; echo PREEMPTED > "$FAKE/state"; exit 1; fi ;;
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


def test_vm_creates_a_slice_and_starts_the_run_on_all_workers(tmp_path):
    done, verbs, calls = launch(tmp_path, ["ends"])
    assert done.returncode == 0, done.stderr
    assert [verb for verb in verbs if verb in ("create", "scp", "ssh", "delete")] == ["create", "scp", "ssh", "ssh"]
    command = next(line for line in calls if "lfcc_jax.main" in line)
    assert "--worker=all" in command
    assert "--distributed --workdir=gs://b/run --config=configs/digits.py:method=kd" in command


def test_vm_passes_arguments_to_the_workers_unchanged(tmp_path):
    given = ["gs://b/a run;touch x", "--", "--config=c.py:method=kd", "--config.student.name=it's"]
    done, _, calls = launch(tmp_path, ["ends"], "name", "zone", "v5litepod-16", *given)
    assert done.returncode == 0, done.stderr
    command = next(line for line in calls if "lfcc_jax.main" in line)
    words = shlex.split(command[command.index("-m lfcc_jax.main") :])
    assert words[2:] == ["--distributed", f"--workdir={given[0]}", *given[2:]]


def test_vm_runs_setup_on_all_workers_before_the_run(tmp_path):
    done, _, calls = launch(tmp_path, ["ends"], TPU_VM_SETUP="fetch-data ~/tensorflow_datasets")
    assert done.returncode == 0, done.stderr
    setup, run = (next(i for i, line in enumerate(calls) if part in line) for part in ("fetch-data", "lfcc_jax.main"))
    assert setup < run
    assert "--worker=all --command=fetch-data ~/tensorflow_datasets" in calls[setup]


def test_vm_rejects_a_work_directory_outside_a_bucket(tmp_path):
    done, _, calls = launch(tmp_path, [], "name", "zone", "v5litepod-16", "runs/x", "--", "--config=c.py")
    assert done.returncode == 2
    assert done.stderr == "BUCKET must be gs://BUCKET/DIRECTORY, got 'runs/x'\n"
    assert not calls


def test_vm_resumes_on_a_new_slice_after_a_preemption(tmp_path):
    done, verbs, _ = launch(tmp_path, ["preempted", "ends"])
    assert done.returncode == 0, done.stderr
    lifecycle = [verb for verb in verbs if verb in ("create", "delete")]
    assert lifecycle == ["create", "delete", "create"]
    assert "was preempted" in done.stderr


def test_vm_does_not_repeat_a_run_that_fails(tmp_path):
    done, verbs, _ = launch(tmp_path, ["fails", "ends"])
    assert done.returncode == 1
    assert verbs.count("create") == 1
    assert "the run failed" in done.stderr


def test_vm_retries_a_slice_that_is_unavailable_or_preempted_before_the_run(tmp_path):
    (tmp_path / "unavailable").touch()
    (tmp_path / "preempted").touch()
    done, verbs, _ = launch(tmp_path, ["ends"])
    assert done.returncode == 0, done.stderr
    lifecycle = [verb for verb in verbs if verb in ("create", "delete")]
    assert lifecycle == ["create", "create", "delete", "create"]
    assert "name could not be created; retrying in 0 s" in done.stderr


@pytest.mark.parametrize("arguments", [("name", "zone"), ("name", "zone", "type", "gs://b", "--config=x", "y")])
def test_vm_prints_its_usage_for_invalid_arguments(tmp_path, arguments):
    done, _, calls = launch(tmp_path, [], *arguments)
    assert done.returncode == 2
    assert "experiments/tpu/vm.sh NAME ZONE TYPE BUCKET --" in done.stderr
    assert not calls

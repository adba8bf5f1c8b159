import os
import signal
import subprocess
import sys
import time

import pytest


def run(*arguments):
    command = [sys.executable, "-m", "lfcc_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.epoch=3"], 'unknown config key: \'epoch\' Did you mean "epochs" instead of "epoch"?'),
        (["--config.epochs=many"], "could not convert string to float: 'many'"),
        (["--config=configs/digitz.py"], "No such file or directory: 'configs/digitz.py'"),
        (["--config=configs/digits.py:method=lfc"], "unknown method 'lfc'; did you mean 'lfcc'? Known: "),
        (["--workdi=x"], "Unknown command line flag 'workdi'. Did you mean: workdir"),
        (["stray"], "unexpected argument 'stray'"),
        ([], "--workdir: missing"),
    ],
)
def test_a_command_line_that_cannot_work_gets_one_line_and_status_1(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_input_that_fails_later_gets_one_line_too(tmp_path, data_dir):
    workdir = tmp_path / "run"
    done = run(f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", "--config.student.name=resnt_pico")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "unknown network 'resnt_pico'; did you mean 'resnet_pico'" in done.stderr
    assert not workdir.exists()


# Shells let programs in the background ignore Ctrl-C, and their children inherit that.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("lfcc_jax.main", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_during_compilation_gets_one_line_and_status_130(tmp_path, data_dir):
    command = [sys.executable, "-c", LISTENING, "--config=configs/digits.py:method=teacher"]
    command += [f"--config.data.data_dir={data_dir}", f"--workdir={tmp_path}"]
    # A cached program would not be compiled.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if "by cross_entropy" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert "compiled the training step" not in rest, "the signal came too late"
    assert process.returncode == 130
    assert errors == "interrupted; the same command resumes from the last checkpoint, if any\n"

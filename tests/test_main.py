import os
import subprocess
import sys

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


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_shows_options_keys_and_names(asked):
    done = run("--config=configs/study.py", asked)
    assert done.returncode == 0
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    for shown in (
        "--workdir",
        "method: lfcc, teacher, scratch, kd",  # an option of that file
        "--config.optimizer.learning_rate.peak=0.001",  # a key of it, with its value
        "swin_tiny_patch4_window7_224",
    ):
        assert shown in text
    assert "cross_entropy, dist, dkd" in text


def test_compiled_programs_are_kept_in_the_users_cache_unless_jax_is_told_of_another_place(tmp_path):
    code = (
        "import jax; from lfcc_jax.main import cache_programs; "
        "cache_programs(); print(jax.config.jax_compilation_cache_dir)"
    )

    def place(**variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | variables)
        return done.stdout.strip()

    assert place(XDG_CACHE_HOME=str(tmp_path)) == str(tmp_path / "lfcc_jax")
    assert (tmp_path / "lfcc_jax").is_dir()
    assert place(XDG_CACHE_HOME="", HOME=str(tmp_path)) == str(tmp_path / ".cache" / "lfcc_jax")
    assert place(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")
    (tmp_path / "file").touch()
    assert place(XDG_CACHE_HOME=str(tmp_path / "file")) == "None"  # not writable: no cache, and no error


def test_an_input_that_fails_later_gets_one_line_too(tmp_path, data_dir):
    workdir = tmp_path / "run"
    done = run(f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", "--config.student.name=resnt_pico")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "unknown network 'resnt_pico'; did you mean 'resnet_pico'" in done.stderr
    assert not workdir.exists()

import os
import signal
import subprocess
import sys
import time

import pytest

from lfcc_jax.config_files import load_config
from lfcc_jax.errors import UserError


def run(*arguments, **environment):
    command = [sys.executable, "-m", "lfcc_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.epoch=3"], "config: unknown key 'epoch'; did you mean 'epochs'? Known: batch_size, "),
        (["--config.epochs=many"], "could not convert string to float: 'many'"),
        (["--config.seed.x=1"], "--config.seed.x: config.seed must be a block of settings, got 0"),
        (["--config=configs/digitz.py"], "No such file or directory: 'configs/digitz.py'"),
        (["--config=configs/digits.py:method=lfc"], "unknown method 'lfc'; did you mean 'lfcc'? Known: "),
        (["--workdi=x"], "Unknown command line flag 'workdi'. Did you mean: workdir"),
        (["stray"], "unexpected argument 'stray'"),
        ([], "--workdir is required"),
    ],
)
def test_main_reports_an_invalid_command_line_in_one_line_with_status_1(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_options_keys_and_names(flag):
    done = run("--config=configs/study.py", flag)
    assert done.returncode == 0
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    for shown in (
        "--workdir",
        "method: lfcc, teacher, scratch, kd",  # an option of the config file
        "--config.optimizer.learning_rate.peak=0.001",  # a key, with its value
        "swin_tiny_patch4_window7_224",
    ):
        assert shown in text
    assert "cross_entropy, dist, dkd" in text


def test_main_reports_an_invalid_config_in_one_line_before_creating_a_work_directory(tmp_path, data_dir):
    workdir = tmp_path / "run"
    done = run(f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", "--config.student.name=resnt_pico")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "unknown network 'resnt_pico'; did you mean 'resnet_pico'" in done.stderr
    assert not workdir.exists()


def test_main_accepts_keys_that_the_config_file_lacks(tmp_path, data_dir):
    # Only the last setting is invalid, so this error shows that the others were accepted.
    settings = ["data.image_size=16", "student.dropout=0.5", "mesh.fsdp=1", "losses.crd.weight=1", "ema_decay=0.9"]
    settings += ["losses.lfcc.grids=1,2", "data.augmentation.flip=true", "student.checkpoint=nowhere"]
    arguments = [f"--config.{setting}" for setting in settings]
    done = run(f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={data_dir}", *arguments)
    assert done.returncode == 1
    assert "no finished network in" in done.stderr
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("platform", ["bogus", "tpu", "cuda"])
def test_main_reports_an_unavailable_platform_in_one_line(tmp_path, platform):
    done = run(f"--workdir={tmp_path / 'run'}", JAX_PLATFORMS=platform)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: JAX_PLATFORMS={platform}: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# -- Config files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "config.py, line 1: SyntaxError: invalid syntax"),
        ("\nimport nowhere\n", "config.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    return {}['a']\n", "config.py, line 2: KeyError: 'a'"),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", "config.py, line 2: ValueError: two lines"),
        ("def get_config():\n    raise OSError(13, 'no')\n", "config.py, line 2: PermissionError: [Errno 13] no"),
        ("def get_config():\n    pass\n", "config.py: get_config() must return a ConfigDict or a dict, got None"),
        ("def get_config():\n    return [1]\n", "config.py: get_config() must return a ConfigDict or a dict, got [1]"),
        ("def get_config(argument):\n    return {}\n", "config.py: get_config takes an argument, got none"),
        ("get_confg = dict\n", "config.py must define get_config()"),
        ("\0", "config.py: "),
        ("\xff", "config.py, line 1: SyntaxError: (unicode error)"),
    ],
)
def test_load_config_reports_the_file_and_line_of_an_error(tmp_path, text, message):
    file = tmp_path / "config.py"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as error:
        load_config(str(file))
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_load_config_rejects_other_files_and_unused_arguments(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for path in ("", tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match=r"must be a Python file that defines get_config\(\)"):
            load_config(str(path))
    (tmp_path / "config.py").write_text("def get_config():\n    return {}\n")
    with pytest.raises(UserError, match="get_config takes no argument, got 'method=kd'"):
        load_config(f"{tmp_path / 'config.py'}:method=kd")


def test_load_config_accepts_dicts_and_all_config_types(tmp_path):
    file = tmp_path / "config.py"
    for kind in ("dict", "ConfigDict", "FrozenConfigDict"):
        imports = "" if kind == "dict" else f"from ml_collections import {kind}\n"
        file.write_text(f"{imports}\ndef get_config(a):\n    return {kind}({{'a': {{'b': a}}}})\n")
        config = load_config(f"{file}:x")
        config.a.c = 1
        assert config.to_dict() == {"a": {"b": "x", "c": 1}}
        file.unlink()


# Shells make background programs ignore Ctrl-C, and child processes inherit that.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("lfcc_jax.main", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_during_compilation_prints_one_line_and_exits_with_status_130(tmp_path, data_dir):
    command = [sys.executable, "-c", PROGRAM, "--config=configs/digits.py:method=teacher"]
    command += [f"--config.data.data_dir={data_dir}", f"--workdir={tmp_path}"]
    # Force a compilation.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if "by cross_entropy" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert "compiled the training step" not in rest, "the signal arrived too late"
    assert process.returncode == 130
    assert errors == "interrupted; the same command resumes from the last checkpoint, if any\n"

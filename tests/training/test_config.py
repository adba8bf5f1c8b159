import sys

import pytest
from ml_collections import ConfigDict, FieldReference

from lfcc_jax.config_files import load_config, parse_argument
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import read_config

GOOD = {"data": {}, "student": {}, "losses": {}, "optimizer": {}, "epochs": 1, "batch_size": 8}


def test_read_config_reads_config_dicts_like_dicts_and_resolves_references():
    config = ConfigDict(GOOD)
    config.seed = FieldReference(3) + 1
    assert read_config(config) == read_config(GOOD | {"seed": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "config: unknown key 'epoch'; did you mean 'epochs'"),
        ({"dtype": "float16"}, "config.dtype must be 'float32' or 'bfloat16', got 'float16'"),
        ({"epochs": 0}, "config.epochs must be a positive number up to 1000000, got 0"),
        ({"seed": -1}, "config.seed must be an integer between 0 and 4294967295, got -1"),
        ({"log_every_steps": 2.5}, "config.log_every_steps must be an integer between 1 and 100000, got 2.5"),
        ({"ema_decay": 1.5}, r"config.ema_decay must be a number in \[0, 1\), got 1.5"),
        ({"losses": {"kd": 1.0}}, "config.losses.kd must be a block of settings, got 1.0"),
    ],
)
def test_read_config_rejects_invalid_values(change, message):
    with pytest.raises(UserError, match=message):
        read_config(GOOD | change)


def test_read_config_rejects_a_missing_key():
    with pytest.raises(UserError, match="config: missing epochs"):
        read_config({key: value for key, value in GOOD.items() if key != "epochs"})


def test_parse_argument_converts_values_to_the_types_of_the_defaults():
    options = {"method": ("lfcc", "kd"), "runlocal": False, "width": 3}
    assert vars(parse_argument("", **options)) == {"method": "lfcc", "runlocal": False, "width": 3}
    got = vars(parse_argument("runlocal,method=kd,width=5", **options))
    assert got == {"method": "kd", "runlocal": True, "width": 5}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("metod=kd", "unknown name 'metod'"),
        ("method=kdd", "unknown method 'kdd'"),
        ("runlocal=maybe", "unknown runlocal 'maybe'"),
        ("width=wide", "width must be of type int, got 'wide'"),
    ],
)
def test_parse_argument_rejects_invalid_arguments(argument, message):
    with pytest.raises(UserError, match=f"--config=.*: {message}"):
        parse_argument(argument, method=("lfcc", "kd"), runlocal=False, width=3)


def test_load_config_works_from_any_directory_and_leaves_the_import_path_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "neighbor_of_a_config.py").write_text("SEED = 5\n")
    text = "from mine.neighbor_of_a_config import SEED\ndef get_config():\n    return {'seed': SEED}\n"
    (tmp_path / "mine" / "config.py").write_text(text)
    before = list(sys.path)
    assert load_config(str(tmp_path / "mine" / "config.py")).seed == 5
    assert sys.path == before

"""Invalid values of a config, block by block, and the error for each, raised before a work directory is created.

Invalid files are tested elsewhere: see `ELSEWHERE`.
"""

import math
from pathlib import Path

import pytest

from lfcc_jax import train
from lfcc_jax.errors import UserError

ELSEWHERE = {
    "command line, config files": "tests/test_main.py",
    "images, data sets": "tests/data/test_records.py",
    "teacher files": "tests/models/test_saved.py",
    "checkpoints to convert": "tests/convert/test_command.py",
}

# Changes to the config, by key, and the expected error.
BLOCK = "must be a block of settings, got"
ROWS = [
    # data
    ({"data": "digits"}, f"config.data {BLOCK} 'digits'"),
    ({"data.name": ""}, "unknown data set ''"),
    ({"data.name": 5}, "config.data.name must be a string, got 5"),
    ({"data.name": None}, "config.data.name must be a string, got None"),
    ({"data": {}}, "config.data: missing name"),
    ({"data": {"nam": "digits"}}, "config.data: unknown key 'nam'; did you mean 'name'?"),
    ({"data.name": "digts"}, "unknown data set 'digts'; did you mean 'digits'?"),
    ({"data.name": "noise_0x32"}, "unknown data set 'noise_0x32'"),
    (
        {"data": {"name": "noise_10x100000"}},
        "noise has at most 100,000 classes and 1,024 pixels a side, got 10 and 100,000",
    ),
    ({"data.train_split": "trian"}, "unknown split 'trian'; did you mean 'train'?"),
    ({"data.train_split": "train[:0%]"}, "split 'train[:0%]'"),
    ({"data.train_split": "train[:200%]"}, "split 'train[:200%]'"),
    ({"data.train_split": "train[:5]"}, "config.batch_size must be at most the number of training images, 5, got 8"),
    ({"data.train_split": ""}, "unknown split ''"),
    ({"data.train_split": 7}, "config.data.train_split must be a string, got 7"),
    ({"data.train_split": "train]; import os"}, "split 'train]; import os'"),
    ({"data.workers": 1.5}, "config.data.workers must be an integer between 0 and 256, got 1.5"),
    ({"data.workers": 100000}, "config.data.workers must be an integer between 0 and 256, got 100000"),
    ({"data.resident": "yes"}, "config.data.resident must be True or False, got 'yes'"),
    ({"data.image_size": -1}, "config.data.image_size must be an integer between 0 and 8192, got -1"),
    ({"data.image_size": True}, "config.data.image_size must be an integer between 0 and 8192, got True"),
    ({"data.image_size": 10**9}, "config.data.image_size must be an integer between 0 and 8192, got 1000000000"),
    ({"data.augmentation": 5}, "config.data.augmentation must be a block of settings or None, got 5"),
    ({"data.augmentation.padding": -1}, "config.data.augmentation.padding must be an integer between 0 and 8192"),
    ({"data.augmentation.padding": 10**6}, "config.data.augmentation.padding must be an integer between 0 and 8192"),
    ({"data.augmentation.padding": 8}, "padding must be less than the size of the images, 8, got 8"),
    ({"data.augmentation.padding": 1.5}, "config.data.augmentation.padding must be an integer"),
    ({"data.augmentation.erasing": math.nan}, "config.data.augmentation.erasing must be a number in [0, 1], got nan"),
    ({"data.augmentation.mixup": -1}, "config.data.augmentation.mixup must be a number between 0 and 1000, got -1"),
    ({"data.augmentation.mixup": math.inf}, "config.data.augmentation.mixup must be a number between 0 and 1000"),
    ({"data.augmentation.color_jitter": math.inf}, "color_jitter must be a number between 0 and 10, got inf"),
    ({"data.augmentation.randaugment": "rand-m99-inc1"}, "randaugment.magnitude must be a number between 0 and 10"),
    ({"data.augmentation.randaugment": "rand-n1000000-inc1"}, "randaugment.layers must be an integer between 1 and 16"),
    ({"data.augmentation.mean": [2]}, "mean must be a list of 1 or 3 numbers in [0, 1], got [2]"),
    ({"data.augmentation.std": ["a"]}, "std must be a list of 1 or 3 numbers in [0, 1], got ['a']"),
    ({"data.augmentation.foo": 1}, "config.data.augmentation: unknown key 'foo'"),
    ({"data.augmentation.num_classes": 3}, "config.data.augmentation.num_classes is set by the run"),
    # student
    ({"student": 5}, f"config.student {BLOCK} 5"),
    ({"student.name": ""}, "unknown network ''"),
    ({"student": {}}, "config.student: missing name"),
    ({"student.name": "resnt_pico"}, "unknown network 'resnt_pico'; did you mean 'resnet_pico'?"),
    ({"student.name": 5}, "config.student.name must be a string, got 5"),
    ({"student.name": ["vit_pico"]}, "config.student.name must be a string, got ['vit_pico']"),
    ({"student.widths": [4, 4]}, "config.student.widths must be a list of 4 integers between 1 and 16384, got [4, 4]"),
    ({"student.widths": [0, 4, 8, 8]}, "config.student.widths must be a list of 4 integers between 1 and 16384"),
    ({"student.widths": [-4, 4, 8, 8]}, "config.student.widths must be a list of 4 integers between 1 and 16384"),
    ({"student.widths": ["a", 4, 8, 8]}, "config.student.widths must be a list of 4 integers between 1 and 16384"),
    ({"student.strides": [0, 1, 1, 1]}, "config.student.strides must be a list of 4 integers between 1 and 8"),
    ({"student.blocks": [0, 0, 0, 0]}, "config.student.blocks must be a list of 4 integers between 1 and 512"),
    ({"student.block": "foo"}, "config.student.block must be 'basic' or 'bottleneck', got 'foo'"),
    ({"student.block": "bottleneck", "student.widths": [2, 4, 8, 8]}, "widths of bottleneck blocks must be multiples"),
    ({"student.dropout": 1.0}, "config.student.dropout must be a number in [0, 1), got 1.0"),
    ({"student.num_classes": 3}, "config.student.num_classes is set by the run and cannot be configured"),
    ({"student.image_size": 3}, "config.student.image_size is set by the run and cannot be configured"),
    ({"student.image_channels": 3}, "config.student.image_channels must be 1, as in the data, got 3"),
    ({"student.image_channels": 0}, "config.student.image_channels must be 1, as in the data, got 0"),
    ({"student.mean": [0.5, 0.5, 0.5]}, "mean and std must have one number or one per channel, of which there are 1"),
    ({"student.std": [0]}, "config.student.std must be a non-empty list of positive numbers, got [0]"),
    ({"student.std": []}, "config.student.std must be a non-empty list of positive numbers, got []"),
    ({"student.crop_fraction": 0}, "config.student.crop_fraction must be a positive number up to 1, got 0"),
    ({"student.dtype": "float99"}, "config.student.dtype must be 'float32' or 'bfloat16', got 'float99'"),
    ({"student.checkpoint": "nowhere"}, "no finished network in"),
    ({"student.checkpoint": 5}, "`config.student.checkpoint` must be a path, got 5"),
    ({"student.chekpoint": "x"}, "config.student: unknown key 'chekpoint'; did you mean 'checkpoint'?"),
    ({"student.parent": 5}, "config.student: unknown key 'parent'"),
    *(
        ({"student": {"name": "vit_pico", key: value}}, message)
        for key, value, message in (
            ("heads", 0, "config.student.heads must be an integer between 1 and 512, got 0"),
            ("width", 0, "config.student.width must be an integer between 1 and 16384, got 0"),
            ("width", -48, "config.student.width must be an integer between 1 and 16384, got -48"),
            ("width", 1e9, "config.student.width must be an integer between 1 and 16384, got 1000000000.0"),
            ("depth", 0, "config.student.depth must be an integer between 1 and 512, got 0"),
            ("patch", 0, "config.student.patch must be an integer between 1 and 256, got 0"),
            ("patch", 3, "patch must divide the image size, got patch=3"),
            ("mlp_ratio", -1, "config.student.mlp_ratio must be a number between 0.01 and 64, got -1"),
            ("mlp_ratio", 0.01, "the hidden width of an MLP must be positive, got 0"),
            ("drop_path", -1, "config.student.drop_path must be a number in [0, 1), got -1"),
        )
    ),
    ({"student": {"name": "mixer_pico", "token_width": 0}}, "config.student: unknown key 'token_width'"),
    # teacher
    ({"teacher": 5}, f"config.teacher {BLOCK} 5"),
    ({"teacher.name": "vit_pcio"}, "unknown network 'vit_pcio'; did you mean 'vit_pico'?"),
    ({"teacher.heads": 8}, "heads must divide width=12, got 8"),
    ({"teacher.foo": 1}, "config.teacher: unknown key 'foo'"),
    ({"teacher.checkpoint": ""}, "config.teacher.checkpoint: missing"),
    ({"teacher.checkpoint": "/nowhere"}, "no finished network in /nowhere"),
    ({"teacher.checkpoint": 5}, "`config.teacher.checkpoint` must be a path, got 5"),
    # losses
    ({"losses": {}}, "config.losses must contain at least one loss with a nonzero weight"),
    ({"losses": {"kd": {"weight": 0.0}}}, "config.losses must contain at least one loss with a nonzero weight"),
    ({"losses": {"kd": {}}, "teacher": {}}, "config.losses.kd needs a teacher, but config.teacher.name is empty"),
    ({"losses": [1]}, f"config.losses {BLOCK} [1]"),
    ({"losses.lfc": {}}, "config.losses: unknown method 'lfc'; did you mean 'lfcc'?"),
    ({"losses.kd": 1.0}, f"config.losses.kd {BLOCK} 1.0"),
    (
        {"losses.kd.weight": math.inf},
        "config.losses.kd.weight must be a non-negative number or a block of settings, got inf",
    ),
    (
        {"losses.kd.weight": "a"},
        "config.losses.kd.weight must be a non-negative number or a block of settings, got 'a'",
    ),
    ({"losses.kd.weight": None}, "config.losses.kd.weight must be"),
    ({"losses.kd.weight": True}, "config.losses.kd.weight must be"),
    ({"losses.kd.weight": -1}, "config.losses.kd.weight must be a non-negative number or a block of settings, got -1"),
    ({"losses.kd.weight": {"name": "linear"}}, "config.losses.kd.weight: missing start, end, epochs"),
    ({"losses.kd.weight": {"name": "foo"}}, "config.losses.kd.weight: unknown schedule 'foo'"),
    (
        {"losses.kd.weight": {"name": "linear", "start": 0, "end": math.inf, "epochs": 1}},
        "config.losses.kd.weight.end must be a non-negative number, got inf",
    ),
    ({"losses.kd.wieght": 1}, "config.losses.kd: unknown key 'wieght'; did you mean 'weight'?"),
    ({"losses.kd.temprature": 1}, "config.losses.kd: unknown key 'temprature'; did you mean 'temperature'?"),
    *(
        ({"losses.kd.temperature": value}, "config.losses.kd.temperature must be a number between 0.001 and 1000, got")
        for value in (-1, 0, math.nan, math.inf, 1e-30, "4")
    ),
    ({"losses.kd.name": "kd"}, "config.losses.kd: unknown key 'name'"),
    ({"losses.cross_entropy.label_smoothing": 1.5}, "label_smoothing must be a number in [0, 1), got 1.5"),
    ({"losses.cross_entropy.label_smoothing": math.nan}, "label_smoothing must be a number in [0, 1), got nan"),
    ({"losses.lfcc.kind": "foo"}, "config.losses.lfcc.kind must be one of 'box', "),
    ({"losses.lfcc.grids": [0]}, "config.losses.lfcc.grids must be a non-empty list of distinct integers between 1"),
    ({"losses.lfcc.grids": [1, 1]}, "config.losses.lfcc.grids must be a non-empty list of distinct integers between 1"),
    ({"losses.lfcc.grids": ["a"]}, "config.losses.lfcc.grids must be a non-empty list of distinct integers between 1"),
    ({"losses.lfcc.grids": 4}, "config.losses.lfcc.grids must be a non-empty list of distinct integers between 1"),
    ({"losses.lfcc.grids": [100]}, "`grids` must contain a size up to 4 for stage2"),
    ({"losses.lfcc.width": 8.5}, "config.losses.lfcc.width must be an integer between 1 and 16384, got 8.5"),
    ({"losses.lfcc.width": 10**9}, "config.losses.lfcc.width must be an integer between 1 and 16384, got 1000000000"),
    ({"losses.lfcc.stages": []}, "config.losses.lfcc.stages must be a non-empty list of distinct strings, got []"),
    ({"losses.lfcc.stages": ["stage9"]}, "config.losses.lfcc.stages: unknown stage 'stage9'"),
    ({"losses.lfcc.projector": "foo"}, "config.losses.lfcc.projector must be one of 'both', 'student', 'mlp', got"),
    ({"losses.lfcc.negatives": "foo"}, "config.losses.lfcc.negatives must be one of 'teacher', 'both', 'symmetric'"),
    ({"losses.lfcc.mesh": 1}, "config.losses.lfcc.mesh is set by the run and cannot be configured"),
    ({"losses.lfcc.temperature": 1e-30}, "config.losses.lfcc.temperature must be a number between 0.001 and 1000, got"),
    (
        {"losses.crd_bank": {"num_negatives": 10**9}},
        "config.losses.crd_bank.num_negatives must be an integer between 1 and 1048576",
    ),
    (
        {"losses.crd_bank": {}},
        "config.losses.crd_bank.num_negatives must be at most the number of training images, 32, got",
    ),
    ({"losses.crd_bank.momentum": 2}, "config.losses.crd_bank.momentum must be a number in [0, 1), got 2"),
    (
        {"losses.crd_bank.num_examples": 5},
        "config.losses.crd_bank.num_examples is set by the run and cannot be configured",
    ),
    ({"losses.dkd.alpha": "a"}, "config.losses.dkd.alpha must be a non-negative number, got 'a'"),
    ({"losses.rkd.angle_weight": -1}, "config.losses.rkd.angle_weight must be a non-negative number, got -1"),
    # optimizer
    ({"optimizer": {}}, "config.optimizer: missing name, learning_rate"),
    ({"optimizer": {"name": "adamw"}}, "config.optimizer: missing learning_rate"),
    ({"optimizer": {"learning_rate": 0.1}}, "config.optimizer: missing name"),
    ({"optimizer": 5}, f"config.optimizer {BLOCK} 5"),
    ({"optimizer.name": ["sgd"]}, "config.optimizer.name must be a string, got ['sgd']"),
    ({"optimizer.name": "sgdd"}, "config.optimizer.name: unknown optimizer 'sgdd'; did you mean 'sgd'?"),
    *(
        ({"optimizer.learning_rate": value}, "config.optimizer.learning_rate must be a non-negative number or a block")
        for value in (-1, math.nan, 1e200, "a", None)
    ),
    ({"optimizer.weight_decay": -1}, "config.optimizer.weight_decay must be a non-negative number, got -1"),
    ({"optimizer.weight_decay": math.nan}, "config.optimizer.weight_decay must be a non-negative number, got nan"),
    ({"optimizer.clip_norm": -1}, "config.optimizer.clip_norm must be a non-negative number, got -1"),
    ({"optimizer.clip_norm": math.nan}, "config.optimizer.clip_norm must be a non-negative number, got nan"),
    ({"optimizer.b1": 2}, "config.optimizer.b1 must be a number in [0, 1), got 2"),
    ({"optimizer.b1": -1}, "config.optimizer.b1 must be a number in [0, 1), got -1"),
    ({"optimizer.b2": 1}, "config.optimizer.b2 must be a number in [0, 1), got 1"),
    ({"optimizer.eps": 0}, "config.optimizer.eps must be a number between 1e-30 and 1, got 0"),
    ({"optimizer.eps": math.nan}, "config.optimizer.eps must be a number between 1e-30 and 1, got nan"),
    ({"optimizer.eps": -1}, "config.optimizer.eps must be a number between 1e-30 and 1, got -1"),
    ({"optimizer.momentum": 0.9}, "config.optimizer: unknown key 'momentum'"),
    *(
        ({"optimizer": {"name": "sgd", "learning_rate": 0.1, key: value}}, message)
        for key, value, message in (
            ("momentum", 2, "config.optimizer.momentum must be a number in [0, 1), got 2"),
            ("nesterov", "yes", "config.optimizer.nesterov must be True or False, got 'yes'"),
        )
    ),
    # a schedule
    *(
        ({"optimizer.learning_rate": {"peak": 0.1} | block}, f"config.optimizer.learning_rate{message}")
        for block, message in (
            ({"name": "foo"}, ": unknown schedule 'foo'"),
            ({"name": ["cosine"]}, ": unknown schedule"),
            ({"name": "cosine", "warmup_epochs": -1}, ".warmup_epochs must be a non-negative number up to 1000000"),
            ({"name": "cosine", "warmup_epochs": math.nan}, ".warmup_epochs must be a non-negative number up to"),
            ({"name": "cosine", "warmup_epochs": 5}, ".warmup_epochs must be at most the length of the run, 2 epochs"),
            ({"name": "cosine", "peak": "a"}, ".peak must be a non-negative number, got 'a'"),
            ({"name": "cosine", "peak": -1}, ".peak must be a non-negative number, got -1"),
            ({"name": "cosine", "steps_per_epoch": 3}, ".steps_per_epoch is set by the run and cannot be configured"),
            ({"name": "cosine", "total_steps": 3}, ".total_steps is set by the run and cannot be configured"),
            ({"name": "step", "every_epochs": 0}, ".every_epochs must be a positive number up to 1000000, got 0"),
            ({"name": "step", "every_epochs": 1, "factor": -1}, ".factor must be a number in [0, 1], got -1"),
            ({"name": "cosine", "peek": 1}, ": unknown key 'peek'; did you mean 'peak'?"),
        )
    ),
    # the run
    *(
        ({"epochs": value}, "config.epochs must be a positive number up to 1000000, got")
        for value in (0, -1, math.nan, math.inf, 1e300, "a", None)
    ),
    ({"epochs": 1e-9}, "config.epochs must amount to between 1 and 2^31 - 1 steps, got 1e-09 epochs of 4"),
    *(({"batch_size": value}, "config.batch_size must be a positive integer, got") for value in (-16, 16.5, "16")),
    (
        {"batch_size": 12, "mesh.data": -1},
        "config.batch_size must be a multiple of the number of devices, 8, got 12; use 8 or 16",
    ),
    ({"batch_size": 64}, "config.batch_size must be at most the number of training images, 32, got 64"),
    ({"batch_size": 10**30 // 8 * 8}, "config.batch_size must be at most the number of training images, 32"),
    *(
        ({"seed": value}, "config.seed must be an integer between 0 and 4294967295, got")
        for value in (-1, 2**32, 2**70, 1.5, "a")
    ),
    *(({"dtype": value}, "config.dtype must be 'float32' or 'bfloat16', got") for value in ("float16", "foo", 5)),
    *(
        ({"ema_decay": value}, "config.ema_decay must be a number in [0, 1), got")
        for value in (1, -0.1, math.nan, 1 - 1e-12)
    ),
    *(
        ({"log_every_steps": value}, "config.log_every_steps must be an integer between 1 and 100000, got")
        for value in (10**12, 2.5, 0)
    ),
    *(
        ({"eval_every_epochs": value}, "config.eval_every_epochs must be a positive number up to 1000000, got")
        for value in (0, math.nan, math.inf)
    ),
    *(
        ({"checkpoint_every_steps": value}, "config.checkpoint_every_steps must be an integer between 0 and")
        for value in (-1, 0.5)
    ),
    ({"mesh": 8}, f"config.mesh {BLOCK} 8"),
    ({"mesh.data": "a"}, "config.mesh.data must be an integer >= -1, got 'a'"),
    ({"mesh.data": 0}, "config.mesh: data=0"),
    ({"mesh.data": 10**30}, "config.mesh: data="),
    ({"mesh.fsdp": 0}, "config.mesh.fsdp must be an integer >= 1, got 0"),
    ({"mesh.data": -1, "mesh.fsdp": 3}, "config.mesh: data=-1, fsdp=3"),
    ({"mesh.foo": 1}, "config.mesh: unknown key 'foo'"),
    ({"mesh": {"data": 3, "fsdp": 5}}, "uses 15 devices"),
    ({"epoch": 1}, "config: unknown key 'epoch'; did you mean 'epochs'?"),
    ({"checkpoint": 5}, "config: unknown key 'checkpoint'"),
    ({5: 5}, "config: unknown key '5'"),
]

# Changes whose error is raised after the teacher is read.
NEED_A_TEACHER = (
    "student.mean",
    "student.checkpoint",
    "teacher.heads",
    "student.block",
    "losses.lfcc.grids",
    "losses.lfcc.stages",
)
NEED_A_TEACHER += ("student", "data.augmentation")

# Values at the edges of their bounds.
VALID = [
    {
        "data.augmentation": None,
        "student.widths": [4, 4, 8, 8],
        "student.dtype": "bfloat16",
        "losses.kd.weight": 0,
        "losses.crd_bank": {"num_negatives": 32, "momentum": 0},
        "optimizer.learning_rate": 0,
        "optimizer.b1": 0,
        "seed": 2**32 - 1,
        "epochs": 0.25,
        "checkpoint_every_steps": 10**9,
    },
    {
        "data": {"name": "noise_10x8", "resident": True, "augmentation": {"padding": 7, "mean": [0.5]}},
        "student.image_channels": 3,
        "teacher": {},
        "losses": {"cross_entropy": {"label_smoothing": 0.0}},
        "optimizer.learning_rate": {"name": "cosine", "peak": 0.1, "warmup_epochs": 2},
        "mesh": {"data": 4, "fsdp": 2},
    },
]


class AcceptedError(Exception):
    """Raised when the run claims its work directory, so the config is valid."""


@pytest.fixture
def begin(distilled, tmp_path, monkeypatch):
    """Starts a run with a changed config, and stops it where it would create its work directory."""

    def claim(*_):
        raise AcceptedError

    monkeypatch.setattr(train, "claim_workdir", claim)

    def begin(changes):
        config = distilled()
        if not any(key in NEED_A_TEACHER for key in changes):
            config["teacher"].pop("checkpoint")  # slow to read
        for key, value in changes.items():
            block, *names, last = config, *(key.split(".") if isinstance(key, str) else [key])
            for name in names:
                block = block.setdefault(name, {})
            block[last] = value
        train.train_and_evaluate(config, tmp_path / "run")

    return begin


@pytest.mark.parametrize(("changes", "message"), ROWS, ids=[str(i) for i in range(len(ROWS))])
@pytest.mark.usefixtures("types_unchecked")
def test_train_reports_an_invalid_config_in_one_line_before_creating_a_work_directory(
    begin, tmp_path, changes, message
):
    with pytest.raises(UserError) as error:
        begin(changes)
    text = str(error.value)
    assert message in text
    assert len(text.splitlines()) == 1
    assert len(text) <= 700
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", VALID, ids=[str(i) for i in range(len(VALID))])
@pytest.mark.usefixtures("types_unchecked")
def test_train_accepts_a_valid_config(begin, changes):
    with pytest.raises(AcceptedError):
        begin(changes)


def test_files_listed_in_elsewhere_exist():
    assert [path for path in ELSEWHERE.values() if not (Path(__file__).parent.parent / path).exists()] == []

"""Small images of 100 classes and small heterogeneous networks: all methods with one recipe, in minutes on one GPU.

    python -m experiments.compare --config=configs/study.py --pairs=all --methods=all --parallel=8 --workdir=runs/study

`teacher` and `student` are networks for images of 32 x 32 pixels; `--pairs=all` has one pair for each direction
between CNN, Transformer and MLP. `method` is one of `METHODS` or `ABLATION`, or `teacher`. The data set is CIFAR-100,
or any other of 32 x 32 pixels with `--config.data.name=DIRECTORY`, and is kept in device memory. All students share one
AdamW recipe; teachers are trained four times as long, with stronger augmentation (not with `runlocal`).

`runlocal` shrinks a run to minutes on 2 CPU cores: smaller networks, 16 x 16 pixels, and a fifth of the images
for students. Teachers use nine tenths, so the last tenth is held out from both networks and can be used to choose
weights (`--config.data.test_split='train[90%:]'`).
"""

from types import SimpleNamespace

from ml_collections import ConfigDict

from lfcc_jax import models
from lfcc_jax.config_files import parse_argument
from lfcc_jax.methods import presets
from lfcc_jax.models.tokens import TokenNetwork

METHODS = (
    *("scratch", "kd", "fitnet_kd", "at", "cc", "rkd", "crd", "dkd", "dist", "ofa"),
    *("lfcc", "fitnet_dist", "lfcc_dist", "lfcc_dist_3"),
    # RSD, the queue and the views have the published weights, the best of three with `runlocal`.
    *("rsd", "rsd_kd", "dist_rsd", "dual_view_kd", "queue_kd", "lfcc_rsd", "lfcc_dist_rsd"),
)

# Run before the others, so that a comparison that is stopped early tells the most: the best rivals and LFCC.
FIRST = ("dist", "dist_rsd", "lfcc_dist", "lfcc_dist_rsd")

# Variants of LFCC, with one change each.
_VARIANTS = {
    "lfcc_alone": {"kd": {"weight": 0.0}},
    "lfcc_raw": {"lfcc": {"standardize": False}},
    "lfcc_none": {"lfcc": {"kind": "none"}},
    "lfcc_gaussian": {"lfcc": {"kind": "gaussian"}},
    "lfcc_ideal": {"lfcc": {"kind": "ideal"}},
    "lfcc_dct": {"lfcc": {"kind": "dct"}},
    "lfcc_learned": {"lfcc": {"kind": "learned"}},
    "lfcc_grid1": {"lfcc": {"grids": (1,)}},
    "lfcc_grid2": {"lfcc": {"grids": (2,)}},
    "lfcc_grid4": {"lfcc": {"grids": (4,), "stages": ("stage1", "stage2", "stage3")}},
    "lfcc_stage4": {"lfcc": {"stages": ("stage4",)}},
    "lfcc_stage34": {"lfcc": {"stages": ("stage3", "stage4")}},
    "lfcc_stage12": {"lfcc": {"stages": ("stage1", "stage2")}},
    "lfcc_cool": {"lfcc": {"temperature": 0.05}},
    "lfcc_warm": {"lfcc": {"temperature": 0.2}},
    "lfcc_both": {"lfcc": {"negatives": "both"}},
    "lfcc_symmetric": {"lfcc": {"negatives": "symmetric"}},
    "lfcc_student": {"lfcc": {"projector": "student"}},
    "lfcc_mlp": {"lfcc": {"projector": "mlp"}},
}
ABLATION = ("kd", "dist", "lfcc", "lfcc_dist", "lfcc_dist_3", *_VARIANTS)

# Weights of the losses with `runlocal`, chosen for its first and third pair on the last tenth of the training images.
_WEIGHTS_RUNLOCAL = {
    "kd": 10.0,
    "fitnet": 0.3,
    "at": 1.0,
    "cc": 0.002,
    "rkd": 0.1,
    "crd": 0.3,
    "dkd": 3.0,
    "dist": 3.0,
    "ofa": 3.0,
    "lfcc": 10.0,
}
# Weight of LFCC with DIST: 1 was chosen for all six pairs of `runlocal`, on train[20%:]; 3, earlier, for the first,
# third and fifth pair.
_WEIGHTS_WITH_DIST = {"lfcc_dist": 1.0, "lfcc_dist_3": 3.0, "lfcc_dist_rsd": 1.0}

_PAIRS = (
    ("swin_pico_32", "resnet_micro_32"),
    ("mixer_small_32", "mobilenetv2_050_32"),
    ("resnet18_32", "vit_nano_32"),
    ("mixer_small_32", "swin_femto_32"),
    ("resnet18_32", "resmlp_nano_32"),
    ("swin_pico_32", "mixer_nano_32"),
)
_PAIRS_RUNLOCAL = (
    ("vit_nano", "resnet_pico"),
    ("mixer_nano", "resnet_pico"),
    ("resnet_nano", "vit_pico"),
    ("mixer_nano", "vit_pico"),
    ("resnet_nano", "mixer_pico"),
    ("vit_nano", "mixer_pico"),
)


def get_pairs(argument: str = "") -> tuple[tuple[str, str], ...]:
    """Returns the (teacher, student) pairs of `--pairs=all`."""
    return _PAIRS_RUNLOCAL if _chosen(argument).runlocal else _PAIRS


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `teacher=...,student=...,method=...,runlocal`."""
    chosen = _chosen(argument)
    teacher, student = (_PAIRS_RUNLOCAL if chosen.runlocal else _PAIRS)[0]
    teacher, student = chosen.teacher or teacher, chosen.student or student
    is_teacher = chosen.method == "teacher"
    config = {
        "seed": 0,
        "data": {
            "name": "cifar100",
            "train_split": "train",
            "test_split": "test",
            "data_dir": "",
            "image_size": 0,
            "resident": True,
            "augmentation": {"flip": True, "padding": 4},
        },
        "student": {"name": teacher if is_teacher else student},
        "teacher": {"name": "" if is_teacher else teacher, "checkpoint": ""},
        "losses": _losses("scratch" if is_teacher else chosen.method, student, chosen.runlocal),
        "optimizer": {
            "name": "adamw",
            "learning_rate": {"name": "cosine", "peak": 1e-3, "final": 0.0, "warmup_epochs": 3.0},
            "weight_decay": 0.05,
            "clip_norm": 5.0,
        },
        "epochs": 30.0,
        "batch_size": 256,
        "ema_decay": 0.0,
        "dtype": "bfloat16",
        "mesh": {"data": -1, "fsdp": 1},
        "log_every_steps": 100,
        "eval_every_epochs": 5.0,
        "checkpoint_every_steps": 0,
    }
    if is_teacher:
        config["epochs"] = 120.0
        config["data"]["augmentation"] |= {"randaugment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0}
    if chosen.runlocal:
        config["data"] |= {
            "train_split": "train[:90%]" if is_teacher else "train[:20%]",
            "image_size": 16,
            "resident": False,
            "augmentation": {"flip": True, "scale": (0.5, 1.0)},
        }
        config |= {"epochs": 12.0, "eval_every_epochs": 6.0, "dtype": "float32"}
        config["batch_size"] = 128 if is_teacher else 64
        for role in ("student", "teacher"):
            name = config[role]["name"]
            if name and issubclass(models.variant(name).network, TokenNetwork):
                config[role]["patch"] = 4  # 16 tokens
    return ConfigDict(config)


def _losses(method: str, student: str, runlocal: bool) -> dict[str, dict]:
    variant = _VARIANTS.get(method, {})
    changes = {name: {"weight": weight} for name, weight in _WEIGHTS_RUNLOCAL.items()} if runlocal else {}
    lfcc = changes.get("lfcc", {}) | {"width": 64 if runlocal else 128}
    if method in _WEIGHTS_WITH_DIST:
        lfcc["weight"] = _WEIGHTS_WITH_DIST[method]
    changes["lfcc"] = lfcc
    for name, block in variant.items():
        changes[name] = changes.get(name, {}) | block
    preset = "lfcc" if variant else "lfcc_dist" if method == "lfcc_dist_3" else method
    return presets.losses(preset, student, changes)


def _chosen(argument: str) -> SimpleNamespace:
    return parse_argument(
        argument,
        teacher="",
        student="",
        method=tuple(dict.fromkeys(("lfcc", "teacher", *METHODS, *ABLATION))),
        runlocal=False,
    )

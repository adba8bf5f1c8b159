"""Small images of 100 classes between unlike small networks: every method under one recipe, in minutes on one GPU.

    python -m experiments.compare --config=configs/study.py --pairs=all --methods=all --parallel=8 --workdir=runs/study

`teacher` and `student` are networks of the zoo for images of 32 x 32 pixels; `PAIRS` has one pair for each way between
CNN, Transformer and MLP. `method` is one of `METHODS`, or `teacher`. The data set is CIFAR-100, or any other of 32 x 32
pixels by `--config.data.name=DIRECTORY`; it lives in device memory. All students train alike, with AdamW; teachers four
times as long, with stronger augmentation.

With `runlocal` it shrinks to what 2 CPU cores can do: a fifth of the images at 16 x 16 pixels, and a small network of
the same kind for each; a run then takes some minutes.
"""

from ml_collections import ConfigDict

from lfcc_jax.training import recipes
from lfcc_jax.training.config import parse_argument

PAIRS = (
    ("swin_pico_32", "resnet_micro_32"),
    ("mixer_small_32", "mobilenetv2_050_32"),
    ("resnet18_32", "vit_nano_32"),
    ("mixer_small_32", "swin_femto_32"),
    ("resnet18_32", "resmlp_nano_32"),
    ("swin_pico_32", "mixer_nano_32"),
)
METHODS = ("scratch", "kd", "fitnet_kd", "at", "cc", "rkd", "crd", "dkd", "dist", "ofa", "lfcc")


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `teacher=...,student=...,method=...,runlocal`."""
    chosen = parse_argument(
        argument, teacher=PAIRS[0][0], student=PAIRS[0][1], method=("lfcc", "teacher", *METHODS), runlocal=False
    )
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
        "student": {"name": chosen.teacher if is_teacher else chosen.student},
        "teacher": {"name": "" if is_teacher else chosen.teacher, "checkpoint": ""},
        "losses": recipes.losses("scratch" if is_teacher else chosen.method, chosen.student),
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
            "train_split": "train[:20%]",
            "test_split": "test[:20%]",
            "image_size": 16,
            "resident": False,
        }
        config["data"]["augmentation"] |= {"padding": 0, "scale": (0.5, 1.0)}
        config |= {"epochs": 2 * config["epochs"] / 3, "batch_size": 64, "dtype": "float32"}
        for network in ("student", "teacher"):
            if name := config[network]["name"]:
                config[network]["name"] = _smaller(name)
    return ConfigDict(config)


def _smaller(network: str) -> str:
    """Returns a small network of the same kind, for images of any size."""
    for start, small in (("vit", "vit_pico"), ("swin", "vit_pico"), ("mixer", "mixer_pico"), ("resmlp", "mixer_pico")):
        if network.startswith(start):
            return small
    return "resnet_pico"

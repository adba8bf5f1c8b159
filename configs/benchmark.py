"""The benchmark of distillation between heterogeneous architectures: its pairs and recipes, as config blocks.

Pairs and settings are those of One-for-All (Hao et al., One-for-All: Bridge the Gap Between Heterogeneous
Architectures in Knowledge Distillation, 2023), as in the released code: batch sizes are global, all networks see images
of 224 x 224 pixels, and students are trained from scratch. Known deviations in the authors' own runs are listed in the
config files. The losses of each method are in `lfcc_jax.methods.presets`.

Differences from that code: each network normalizes images by its own mean and standard deviation (there CIFAR-100's
for all, on CIFAR-100); test images are resized with the student's interpolation; mixing draws one fraction per global
batch (there one in each of eight processes); `drop_path` is 0 (there unset on CIFAR-100, so timm's 0.1 for Swin
students); position embeddings and bias tables have no weight decay (there they do, because the distiller wraps the
student); BatchNorm uses the statistics of the global batch.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from lfcc_jax import models
from lfcc_jax.config_files import parse_argument
from lfcc_jax.errors import UserError
from lfcc_jax.methods import presets

Block = dict[str, Any]

METHODS = presets.METHODS

# Teachers and students of the benchmark's two tables.
CIFAR100_PAIRS = (
    ("swin_tiny", "resnet18"),
    ("vit_small", "resnet18"),
    ("mixer_b16", "resnet18"),
    ("swin_tiny", "mobilenetv2_100"),
    ("vit_small", "mobilenetv2_100"),
    ("mixer_b16", "mobilenetv2_100"),
    ("convnext_tiny", "deit_tiny"),
    ("mixer_b16", "deit_tiny"),
    ("convnext_tiny", "swin_pico"),
    ("mixer_b16", "swin_pico"),
    ("convnext_tiny", "resmlp_12"),
    ("swin_tiny", "resmlp_12"),
)
IMAGENET_PAIRS = (
    ("deit_tiny", "resnet18"),
    ("swin_tiny", "resnet18"),
    ("mixer_b16", "resnet18"),
    ("deit_tiny", "mobilenetv2_100"),
    ("swin_tiny", "mobilenetv2_100"),
    ("mixer_b16", "mobilenetv2_100"),
    ("resnet50", "deit_tiny"),
    ("convnext_tiny", "deit_tiny"),
    ("mixer_b16", "deit_tiny"),
    ("resnet50", "swin_nano"),
    ("convnext_tiny", "swin_nano"),
    ("mixer_b16", "swin_nano"),
    ("resnet50", "resmlp_12"),
    ("convnext_tiny", "resmlp_12"),
    ("swin_tiny", "resmlp_12"),
)


def get_config(
    argument: str,
    *,
    recipe: Callable[[str], Block],
    teacher_recipe: Callable[[str], Block],
    data: Block,
    num_classes: int,
    **changes: Any,
) -> ConfigDict:
    """Returns the config of one run; `argument` is `teacher=...,student=...,method=...,runlocal`.

    Args:
      argument: The part of `--config` after the colon.
      recipe: Returns the recipe of a student, given its name: `cifar100` or `imagenet`.
      teacher_recipe: The same for the teacher.
      data: The `data` block, without the augmentation.
      num_classes: Number of classes of the data set.
      **changes: Keys of the config that differ from the benchmark's.
    """
    methods = tuple(dict.fromkeys(("lfcc", "teacher", *METHODS)))  # the first is the default
    chosen = parse_argument(argument, teacher="swin_tiny", student="resnet18", method=methods, runlocal=False)
    if chosen.method == "teacher":
        teacher, student, method, recipe = "", chosen.teacher, "scratch", teacher_recipe
    else:
        teacher, student, method = chosen.teacher, chosen.student, chosen.method
    config = run(recipe(student), teacher=teacher, student=student, method=method, data=data) | changes
    return ConfigDict(runlocal(config, num_classes) if chosen.runlocal else config)


def cifar100(student: str) -> Block:
    """Returns the recipe of a student on CIFAR-100: 300 epochs of 48 steps."""
    schedule = {"epochs": 300.0, "batch_size": 1024, "ema_decay": 0.0}
    if models.family(student) == "cnn":
        learning_rate = _cosine(0.05, 1e-3, warmup_epochs=3, warmup_start=1e-4)
        return {"optimizer": _sgd(learning_rate, 2e-3), "augmentation": {"flip": True}, **schedule}
    learning_rate = _cosine(5e-4, 1e-5, warmup_epochs=20, warmup_start=5e-7)
    return {"optimizer": _adamw(learning_rate), "augmentation": _strong(), **schedule}


def fine_tuning(teacher: str) -> Block:
    """Returns the recipe of a teacher from ImageNet on CIFAR-100, the same for every network.

    The released teachers were trained with the students' AdamW recipe at a tenth of its learning rates.
    """
    return {
        "optimizer": _adamw(_cosine(5e-5, 1e-6, warmup_epochs=20, warmup_start=5e-8)),
        "augmentation": _strong(),
        "epochs": 300.0,
        "batch_size": 1024,
        "ema_decay": 0.0,
    }


def imagenet(student: str) -> Block:
    """Returns the recipe of a network on ImageNet-1K: 100 epochs for CNNs, 300 for others."""
    if models.family(student) == "cnn":
        learning_rate = {
            "name": "step",
            "peak": 0.1,
            "every_epochs": 30.0,
            "factor": 0.1,
            "warmup_epochs": 3.0,
            "warmup_start": 1e-4,
            "by_epoch": True,
        }
        return {
            "optimizer": _sgd(learning_rate, 1e-4),
            "augmentation": {"flip": True},
            "epochs": 100.0,
            "batch_size": 512,
            "ema_decay": 0.0,
        }
    return {
        "optimizer": _adamw(_cosine(5e-4, 1e-6, warmup_epochs=20, warmup_start=5e-7)),
        "augmentation": _strong(),
        "epochs": 300.0,
        "batch_size": 1024,
        "ema_decay": 0.99996,
    }


def run(recipe: Block, *, teacher: str, student: str, method: str, data: Block) -> Block:
    """Returns the config of a run.

    Args:
      recipe: The result of `cifar100`, `imagenet` or `fine_tuning`.
      teacher: Name of the teacher; not used by `scratch`.
      student: Name of the student.
      method: One of `METHODS`.
      data: The `data` block, without the augmentation.

    Raises:
      UserError: if a name is unknown, with the nearest one.
    """
    network = {"name": student, "checkpoint": "", "remat": False}
    if hasattr(models.variant(student).network, "drop_path"):
        network["drop_path"] = 0.0
    return {
        "seed": 0,
        "data": {**data, "data_dir": "", "image_size": 224, "augmentation": recipe["augmentation"]},
        "student": network,
        "teacher": {"name": "" if method == "scratch" else teacher, "checkpoint": ""},
        "losses": presets.losses(method, student),
        "optimizer": recipe["optimizer"],
        "epochs": recipe["epochs"],
        "batch_size": recipe["batch_size"],
        "ema_decay": recipe["ema_decay"],
        "dtype": "float32",
        "mesh": {"data": -1, "fsdp": 1},
        "log_every_steps": 50,
        "eval_every_epochs": 1.0,
        "checkpoint_every_steps": 0,
    }


def runlocal(config: Block, num_classes: int) -> Block:
    """Returns a config of `run` shrunk to a minute on a CPU: 16 steps of small networks on random images.

    Raises:
      UserError: if a network has no small variant.
    """
    networks = {
        role: config[role] | (_small(config[role]["name"]) if config[role]["name"] else {})
        for role in ("student", "teacher")
    }
    data = {
        "name": f"noise_{num_classes}x32",
        "train_split": "train",
        "test_split": "test",
        "image_size": 64,
        "workers": 0,
    }
    # The warm-up keeps its fraction of the run, and there are fewer images to draw negatives from.
    rate = config["optimizer"]["learning_rate"]
    rate = rate | {"warmup_epochs": rate["warmup_epochs"] * 0.25 / config["epochs"]}
    losses = {
        name: block | ({"num_negatives": 128} if "num_negatives" in block else {})
        for name, block in config["losses"].items()
    }
    changed = {"optimizer": config["optimizer"] | {"learning_rate": rate}, "losses": losses}
    small = {"dtype": "float32", "batch_size": 16, "epochs": 0.25, "log_every_steps": 4, "checkpoint_every_steps": 0}
    return config | networks | changed | small | {"data": config["data"] | data}


def _small(name: str) -> Block:
    small = models.variant(name).small
    if small is None:
        names = ", ".join(name for name in models.list_models() if models.variant(name).small is not None)
        raise UserError(f"runlocal: '{name}' has no small variant; networks that have one: {names}")
    return dict(small)


def _sgd(learning_rate: Block, weight_decay: float) -> Block:
    return {
        "name": "sgd",
        "learning_rate": learning_rate,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": weight_decay,
        "clip_norm": 0.0,
    }


def _cosine(peak: float, final: float, *, warmup_epochs: float, warmup_start: float) -> Block:
    return {
        "name": "cosine",
        "peak": peak,
        "final": final,
        "warmup_epochs": float(warmup_epochs),
        "warmup_start": warmup_start,
        "by_epoch": True,
    }


def _adamw(learning_rate: Block) -> Block:
    return {"name": "adamw", "learning_rate": learning_rate, "weight_decay": 0.05, "clip_norm": 5.0}


def _strong() -> Block:
    return {
        "flip": True,
        "randaugment": "rand-m9-mstd0.5-inc1",
        "erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    }

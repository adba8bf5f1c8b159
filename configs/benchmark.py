"""How the benchmark of distillation between unlike architectures trains, as blocks of a config.

Its pairs and settings are those of One-for-All (Hao et al., One-for-All: Bridge the Gap Between Heterogeneous
Architectures in Knowledge Distillation, 2023), as released with its code: batches are global, all networks see 224 x
224 pixels, students start from scratch. Where its authors are known to have run something else, the configs say so.

Not as in that code: each network normalizes images by its own mean and deviation (there both by one, on CIFAR-100 its
own), and test images are resized by the student's own interpolation; mixing draws one share for the global batch (there
in each of eight processes); `drop_path` is 0 (there unset on CIFAR-100, so timm's 0.1 for Swin students); position
embeddings and bias tables do not decay (there they do, as they are hidden in the distiller); BatchNorm's statistics are
of the global batch.
"""

from typing import Any

from lfcc_jax import models
from lfcc_jax.errors import UserError, unknown

Block = dict[str, Any]

# What their names begin with.
_CNNS = ("resnet", "mobilenetv2", "convnext")

# The rows of its two tables, teacher and student.
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

# By method the losses beside the cross-entropy. The first ten are the benchmark's, with its weights; the others have
# those that are usual for them on CIFAR-100.
_KD = {"weight": 1.0, "temperature": 1.0}
_LFCC = {
    "weight": 1.0,
    "kind": "box",
    "grids": (1, 2, 4),
    "stages": ("stage1", "stage2", "stage3", "stage4"),
    "width": 128,
    "temperature": 0.1,
    "standardize": True,
}
_METHODS: dict[str, Block] = {
    "scratch": {},
    "kd": {"kd": _KD},
    "dkd": {"dkd": {"weight": 1.0, "alpha": 1.0, "beta": 2.0, "temperature": 1.0}},
    "dist": {"dist": {"weight": 1.0, "temperature": 1.0}},
    "ofa": {"ofa": {"weight": 1.0, "exponent": 1.0, "exit_weight": 1.0}},
    "fitnet": {"fitnet": {"weight": 1.0}},
    "cc": {"cc": {"weight": 0.02}},
    "rkd": {"rkd": {"weight": 1.0}},
    "crd_bank": {"crd_bank": {"weight": 1.0, "num_negatives": 16384, "temperature": 0.07}},
    "lfcc": {"kd": _KD, "lfcc": _LFCC},
    "fitnet_kd": {"fitnet": {"weight": 1.0}, "kd": _KD},
    "crd": {"crd": {"weight": 0.8}},
    "crd_kd": {"crd": {"weight": 0.8}, "kd": _KD},
    "kd_standardized": {"kd": {"weight": 9.0, "temperature": 2.0, "standardize": True}},
    "ttm": {"ttm": {"weight": 45.0}},
    "wttm": {"wttm": {"weight": 1.0}},
    "at": {"at": {"weight": 1000.0}},
    "sp": {"sp": {"weight": 3000.0}},
    "pkt": {"pkt": {"weight": 30000.0}},
    "nst": {"nst": {"weight": 50.0}},
    "vid": {"vid": {"weight": 1.0}},
    "hcl": {"hcl": {"weight": {"name": "linear", "start": 0.0, "end": 5.0, "epochs": 20.0}}},
    "srrl_kd": {"srrl": {"weight": 1.0}, "kd": _KD},
}
METHODS = tuple(_METHODS)


def losses(method: str, student: str) -> Block:
    """Returns `config.losses` of a method.

    Args:
      method: one of `METHODS`.
      student: the network's name, by which OFA's exits are chosen.

    Raises:
      UserError: for an unknown method, with the nearest one.
    """
    if method not in _METHODS:
        raise unknown("method", method, METHODS)
    blocks = {name: dict(block) for name, block in _METHODS[method].items()}
    if "ofa" in blocks:
        blocks["ofa"]["branch"] = "convolution" if student.startswith(_CNNS) else "attention"
    return {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}, **blocks}


def cifar100(student: str) -> Block:
    """Returns the keys of a config that say how a student is trained on CIFAR-100: 300 epochs of 48 steps."""
    if student.startswith(_CNNS):
        return {
            "optimizer": {
                "name": "sgd",
                "learning_rate": _cosine(0.05, 1e-3, warmup_epochs=3, warmup_start=1e-4),
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 2e-3,
                "clip_norm": 0.0,
            },
            "augmentation": {"flip": True},
            "epochs": 300.0,
            "batch_size": 1024,
            "ema_decay": 0.0,
        }
    return {
        "optimizer": _adamw(_cosine(5e-4, 1e-5, warmup_epochs=20, warmup_start=5e-7)),
        "augmentation": _strong(),
        "epochs": 300.0,
        "batch_size": 1024,
        "ema_decay": 0.0,
    }


def imagenet(student: str) -> Block:
    """Returns the keys of a config that say how a student is trained on ImageNet-1K: 100 epochs for CNNs, or 300."""
    if student.startswith(_CNNS):
        return {
            "optimizer": {
                "name": "sgd",
                "learning_rate": {
                    "name": "step",
                    "peak": 0.1,
                    "every_epochs": 30.0,
                    "factor": 0.1,
                    "warmup_epochs": 3.0,
                    "warmup_start": 1e-4,
                    "by_epoch": True,
                },
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "clip_norm": 0.0,
            },
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


def fine_tuning() -> Block:
    """Returns the keys of a config that say how a teacher from ImageNet is trained on CIFAR-100.

    The authors' released teachers were made by the students' AdamW recipe with a tenth of its learning rates.
    """
    recipe = cifar100("deit_tiny")
    recipe["optimizer"] = _adamw(_cosine(5e-5, 1e-6, warmup_epochs=20, warmup_start=5e-8))
    return recipe


def run(recipe: Block, *, teacher: str, student: str, method: str, data: Block) -> Block:
    """Returns a whole config.

    Args:
      recipe: of `cifar100`, `imagenet` or `fine_tuning`.
      teacher: name of a network, or empty. `scratch` has none.
      student: name of a network.
      method: one of `METHODS`.
      data: the block `data`, but for the recipe's augmentation.

    Raises:
      UserError: for an unknown method, with the nearest one.
    """
    network = {"name": student, "checkpoint": "", "remat": False}
    if not student.startswith(("resnet", "mobilenet")):  # which have no stochastic depth
        network["drop_path"] = 0.0
    return {
        "seed": 0,
        "data": {**data, "data_dir": "", "image_size": 224, "augmentation": recipe["augmentation"]},
        "student": network,
        "teacher": {"name": "" if method == "scratch" else teacher, "checkpoint": ""},
        "losses": losses(method, student),
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
    """Returns a config of `run` that takes a minute on a CPU: 16 steps of small networks on random images.

    Raises:
      UserError: for a network that the benchmark does not have.
    """
    networks = {
        whose: config[whose] | (_smaller(config[whose]["name"]) if config[whose]["name"] else {})
        for whose in ("student", "teacher")
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


def _smaller(network: str) -> Block:
    if network not in _SMALLER:
        if models.full_name(network) in models.list_models():
            raise UserError(
                f"runlocal: there is no small '{network}', but one of each of {', '.join(sorted(_SMALLER))}"
            )
        raise unknown("network", network, _SMALLER)
    return _SMALLER[network]


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


_THIN = {"widths": (8, 16, 32, 64)}
_TOKENS = {"width": 24, "depth": 4, "taps": (1, 2, 3, 4)}
_WINDOWS = {"width": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4)}
_SMALLER: dict[str, Block] = {
    "resnet18": _THIN | {"blocks": (1, 1, 1, 1)},
    "resnet50": {"blocks": (1, 1, 1, 1), "widths": (16, 32, 64, 128), "stem_width": 8},
    "mobilenetv2_100": {"multiplier": 0.25},
    "convnext_tiny": _THIN | {"depths": (1, 1, 1, 1)},
    "deit_tiny": _TOKENS | {"heads": 3},
    "vit_small": _TOKENS | {"heads": 3},
    "mixer_b16": _TOKENS,
    "resmlp_12": _TOKENS,
    "swin_tiny": _WINDOWS,
    "swin_nano": _WINDOWS,
    "swin_pico": _WINDOWS,
}

"""The demo: distills a ViT into a small CNN on scikit-learn's digits, 1,797 real 8x8 scans.

It shows distillation at work within minutes on a laptop's CPU. It is not a benchmark and reproduces no paper.
`method` is one of

    teacher   the ViT itself, on all 1,297 training images
    scratch   the CNN alone, on 10% of the images
    kd        the CNN with the teacher's logits, on the same 10%
    lfcc      the CNN with the teacher's logits and low-frequency features
    lfcc_dist the same, with DIST instead of KD

or any other of `lfcc_jax.methods.presets`: `_kd` and `_dist` are in addition to KD or DIST, the others alone.

Students train on 10% of the images because a CNN trained on all of them is as accurate as the ViT. The temperature of
KD and the weight of LFCC were chosen in short runs, some of which used the test images. The other methods have the
weights of the presets, or the usual ones listed below, and were not tuned.

The teacher, and scratch, kd and lfcc with three seeds each, in about four minutes on 2 CPU cores:

    python -m experiments.compare --config=configs/digits.py

With `--methods=all`, all methods take about 30 minutes. One run, with a value changed:

    python -m lfcc_jax.main --config=configs/digits.py:method=teacher --workdir=runs/teacher
    python -m lfcc_jax.main --config=configs/digits.py:method=lfcc --workdir=runs/lfcc \
        --config.teacher.checkpoint=runs/teacher --config.losses.lfcc.temperature=0.2
"""

from ml_collections import ConfigDict

from lfcc_jax.config_files import parse_argument
from lfcc_jax.methods import presets

METHODS = tuple(
    method for method in presets.METHODS if method not in ("lfcc_dist", "fitnet_dist", "dist_rsd", "lfcc_dist_rsd")
)
_OPTIONS = tuple(dict.fromkeys(("lfcc", "teacher", *presets.METHODS)))  # the first is the default
# Differences from the presets.
_CHANGES = {
    "cross_entropy": {"label_smoothing": 0.0},
    "kd": {"temperature": 4.0},
    "dkd": {
        "weight": {"name": "linear", "start": 0.0, "end": 1.0, "epochs": 20.0},
        "beta": 8.0,
        "temperature": 4.0,
    },
    "dist": {"weight": 2.0, "temperature": 4.0},
    "crd_bank": {"weight": 0.8, "num_negatives": 128},
    # The student's last map is of 1 x 1.
    "dual_view": {"stages": ("stage2",)},
    "queue": {"stages": ("stage2",), "size": 128},
    "rld": {
        "weight": {"name": "linear", "start": 0.0, "end": 1.0, "epochs": 20.0},
        "beta": 8.0,
        "temperature": 4.0,
    },
}
_TEACHER, _STUDENT = "vit_pico", "resnet_pico"


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `method=...,runlocal=...`."""
    chosen = parse_argument(argument, method=_OPTIONS, runlocal=False)
    is_teacher = chosen.method == "teacher"
    method, student = ("scratch", _TEACHER) if is_teacher else (chosen.method, _STUDENT)
    # Standardized KD keeps the temperature of its preset.
    changes = _CHANGES | ({"kd": {}} if method == "kd_standardized" else {})
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "digits",
                "train_split": "train" if is_teacher else "train[:10%]",
                "test_split": "test",
                "data_dir": "runs/data",  # prepared there on first use
                "resident": False,
                "augmentation": {"padding": 1},
            },
            "student": {"name": student},
            "teacher": {"name": "" if is_teacher else _TEACHER, "checkpoint": ""},
            "losses": presets.losses(method, student, changes),
            "optimizer": {
                "name": "adamw",
                "learning_rate": {
                    "name": "cosine",
                    "peak": 3e-3 if is_teacher else 5e-3,
                    "final": 0.0,
                    "warmup_epochs": 2.0,
                },
                "weight_decay": 0.05,
                "clip_norm": 0.0,
            },
            "epochs": 2.0 if chosen.runlocal else 80.0 if is_teacher else 60.0,
            "batch_size": 32,
            "ema_decay": 0.0,
            "dtype": "float32",
            "mesh": {"data": -1, "fsdp": 1},
            "log_every_steps": 20,
            "eval_every_epochs": 1.0 if chosen.runlocal else 10.0,
            "checkpoint_every_steps": 0,
        }
    )

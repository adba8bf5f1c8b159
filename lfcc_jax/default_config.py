"""A ViT teaches a small CNN to read digits: the demo, on 1,797 real 8x8 scans that come with scikit-learn.

Not a row of any paper: a set-up small enough to see distillation work in minutes on a laptop's CPU. `method` is

    teacher   the ViT itself, on all 1,297 training images
    scratch   the CNN alone, on a tenth of them
    kd        the CNN with the teacher's predictions on that tenth
    lfcc      the CNN with the teacher's predictions and low-frequency features
    lfcc_dist the same, the predictions by DIST in place of KD

or one of the rivals in `RIVALS` below, alone beside the cross-entropy or, with `_kd`, beside the teacher's predictions.

A tenth, because a CNN that sees all of them needs no teacher: it is as good as the ViT. The temperature of KD and the
weight of LFCC come from short probes, some of which looked at the test images; the rivals have the weights that are
usual for them on CIFAR-100 where we know any, and were not tuned at all. This is a demonstration, no benchmark.

The teacher, and scratch, kd and lfcc with three seeds each, in under five minutes on 2 CPU cores:

    python -m experiments.compare --config=configs/digits.py

All of them in a quarter of an hour, with `--methods=all`.

One run, with a value changed:

    python -m lfcc_jax.main --config=configs/digits.py:method=teacher --workdir=runs/teacher
    python -m lfcc_jax.main --config=configs/digits.py:method=lfcc --workdir=runs/lfcc \
        --config.teacher.checkpoint=runs/teacher --config.losses.lfcc.temperature=0.2
"""

from ml_collections import ConfigDict

from lfcc_jax.config_files import parse_argument

# For each method the blocks of `losses`, beside the cross-entropy, that have a weight.
KD = {"weight": 1.0, "temperature": 4.0}
RIVALS = {
    "kd_standardized": {
        "cross_entropy": {"weight": 0.1},
        "kd": {"weight": 9.0, "temperature": 2.0, "standardize": True},
    },
    "dkd": {"dkd": {"weight": {"name": "linear", "start": 0.0, "end": 1.0, "epochs": 20.0}}},
    "dist": {"dist": {"weight": 2.0, "temperature": 4.0}},
    "ofa": {"ofa": {"weight": 1.0}},
    "ttm": {"ttm": {"weight": 45.0}},
    "wttm": {"wttm": {"weight": 1.0}},
    "fitnet": {"fitnet": {"weight": 1.0}},
    "fitnet_kd": {"fitnet": {"weight": 1.0}, "kd": KD},
    "at": {"at": {"weight": 1000.0}},
    "sp": {"sp": {"weight": 3000.0}},
    "cc": {"cc": {"weight": 0.02}},
    "rkd": {"rkd": {"weight": 1.0}},
    "pkt": {"pkt": {"weight": 30000.0}},
    "nst": {"nst": {"weight": 50.0}},
    "vid": {"vid": {"weight": 1.0}},
    "hcl": {"hcl": {"weight": {"name": "linear", "start": 0.0, "end": 5.0, "epochs": 20.0}}},
    "crd": {"crd": {"weight": 0.8}},
    "crd_kd": {"crd": {"weight": 0.8}, "kd": KD},
    "crd_bank": {"crd_bank": {"weight": 0.8, "num_negatives": 128}},
    "srrl_kd": {"srrl": {"weight": 1.0}, "kd": KD},
}
METHODS = ("scratch", "kd", *RIVALS, "lfcc")
_LFCC_DIST = {"lfcc": {"weight": 1.0}, **RIVALS["dist"]}


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `method=...,runlocal=...`."""
    chosen = parse_argument(argument, method=("lfcc", "lfcc_dist", "teacher", "scratch", "kd", *RIVALS), runlocal=False)

    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.train_split = "train[:10%]"
    config.data.test_split = "test"
    config.data.data_dir = "runs/data"  # the digits are prepared there
    config.data.resident = False
    config.data.augmentation = ConfigDict({"padding": 1})

    config.student = ConfigDict({"name": "resnet_pico"})
    config.teacher = ConfigDict({"name": "vit_pico", "checkpoint": ""})

    config.losses = ConfigDict()
    config.losses.cross_entropy = ConfigDict({"weight": 1.0, "label_smoothing": 0.0})
    config.losses.kd = ConfigDict(KD)
    config.losses.lfcc = ConfigDict({"weight": 1.0, "temperature": 0.1})
    config.losses.lfcc.kind = "box"
    config.losses.lfcc.grids = (1, 2, 4)
    config.losses.lfcc.stages = ("stage1", "stage2", "stage3", "stage4")
    config.losses.lfcc.width = 128
    config.losses.lfcc.projector = "both"
    config.losses.lfcc.negatives = "teacher"
    config.losses.lfcc.standardize = True

    config.optimizer = ConfigDict({"name": "adamw", "weight_decay": 0.05, "clip_norm": 0.0})
    config.optimizer.learning_rate = ConfigDict({"name": "cosine", "peak": 5e-3, "final": 0.0, "warmup_epochs": 2.0})
    config.epochs = 60.0
    config.batch_size = 32
    config.ema_decay = 0.0
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.log_every_steps = 20
    config.eval_every_epochs = 10.0
    config.checkpoint_every_steps = 0

    if chosen.method == "teacher":
        config.student = ConfigDict({"name": "vit_pico"})
        config.teacher.name = ""
        config.data.train_split = "train"
        config.optimizer.learning_rate.peak = 3e-3
        config.epochs = 80.0
    if chosen.method not in ("kd", "lfcc"):
        config.losses.kd.weight = 0.0
    if chosen.method != "lfcc":
        config.losses.lfcc.weight = 0.0
    for name, block in (RIVALS | {"lfcc_dist": _LFCC_DIST}).get(chosen.method, {}).items():
        config.losses[name] = ConfigDict(dict(config.losses.get(name, {})) | block)
    if chosen.runlocal:
        config.epochs = 2.0
        config.eval_every_epochs = 1.0
    return config

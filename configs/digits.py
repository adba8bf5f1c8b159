"""Distils a ViT into a small ResNet on scikit-learn's digits."""

from ml_collections import ConfigDict


def get_config(method: str = "lfcc") -> ConfigDict:
    """Returns the config of one run."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict({"name": "digits", "train_split": "train", "test_split": "test", "max_shift": 1})
    config.student = ConfigDict({"name": "resnet_pico"})
    config.teacher = ConfigDict({"name": "vit_pico", "checkpoint": ""})
    config.losses = ConfigDict({"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}, "kd": {"weight": 1.0, "temperature": 1.0}, "lfcc": {"weight": 1.0}})
    config.optimizer = ConfigDict({"name": "adamw", "weight_decay": 0.05, "learning_rate": {"name": "cosine", "peak": 1e-3, "warmup_epochs": 2.0}})
    config.epochs = 20
    config.batch_size = 64
    config.eval_every_epochs = 5.0
    if method == "teacher":
        config.student.name = "vit_pico"
        config.teacher.name = ""
        config.losses.kd.weight = 0.0
        config.losses.lfcc.weight = 0.0
    return config

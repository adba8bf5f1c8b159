"""Images in: TFDS sources, Grain pipelines, augmentation on the device. Nothing here needs TensorFlow."""

from lfcc_jax.data.fingerprint import fingerprint
from lfcc_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from lfcc_jax.data.resident import read_all, train_numbers
from lfcc_jax.data.source import Source, open_source
from lfcc_jax.data.splits import Splits, open_splits

__all__ = [
    "Source",
    "Splits",
    "eval_batches",
    "fingerprint",
    "open_source",
    "open_splits",
    "read_all",
    "steps_per_epoch",
    "train_batches",
    "train_numbers",
]

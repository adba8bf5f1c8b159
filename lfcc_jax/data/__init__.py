"""Images in: TFDS sources, Grain pipelines, augmentation on the device. Nothing here needs TensorFlow."""

from lfcc_jax.data.examples import read
from lfcc_jax.data.fingerprint import fingerprint
from lfcc_jax.data.in_memory import in_memory, read_all
from lfcc_jax.data.inputs import Splits, load, open_splits
from lfcc_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from lfcc_jax.data.source import Source, open_source

__all__ = [
    "Source",
    "Splits",
    "eval_batches",
    "fingerprint",
    "in_memory",
    "load",
    "open_source",
    "open_splits",
    "read",
    "read_all",
    "steps_per_epoch",
    "train_batches",
    "train_indices",
]

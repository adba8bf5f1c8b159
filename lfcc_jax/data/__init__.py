"""Input pipelines: TFDS sources, Grain, augmentation on the device. TensorFlow is not needed."""

from lfcc_jax.data.device_crop import to_float
from lfcc_jax.data.examples import read
from lfcc_jax.data.fingerprint import fingerprint
from lfcc_jax.data.in_memory import in_memory, read_all
from lfcc_jax.data.inputs import Images, Inputs, open_inputs
from lfcc_jax.data.open import full_name, open_source
from lfcc_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches, train_indices
from lfcc_jax.data.source import Source

__all__ = [
    "Images",
    "Inputs",
    "Source",
    "eval_batches",
    "fingerprint",
    "full_name",
    "in_memory",
    "open_inputs",
    "open_source",
    "read",
    "read_all",
    "steps_per_epoch",
    "to_float",
    "train_batches",
    "train_indices",
]

"""Images in: TFDS sources, Grain pipelines. Nothing here needs TensorFlow."""

from lfcc_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from lfcc_jax.data.source import Source, Splits, open_source, open_splits

__all__ = ["Source", "Splits", "eval_batches", "open_source", "open_splits", "steps_per_epoch", "train_batches"]

"""The order in which training visits images that live in device memory."""

import grain
import jax
import numpy as np

from lfcc_jax.data.pipeline import train_order
from lfcc_jax.data.source import Source


def train_numbers(source: Source, batch_size: int, *, seed: int) -> grain.DatasetIterator:
    """Returns an endless, checkpointable iterator of this process's share of each global batch, as numbers alone.

    They are the `index` int32 `[batch]` of what `train_batches` gives for the same arguments.
    """
    dataset = train_order(source, batch_size, seed).map(np.int32).batch(batch_size // jax.process_count())
    return iter(dataset[jax.process_index() :: jax.process_count()].to_iter_dataset())

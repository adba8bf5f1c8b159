"""A small data set read whole, to live in device memory, and the order in which training visits it."""

import grain
import jax
import numpy as np

from lfcc_jax.data.pipeline import train_order
from lfcc_jax.data.source import Source


def read_all(source: Source) -> dict[str, np.ndarray]:
    """Returns all examples of a source whose images have one size.

    Returns:
      `image` uint8 `[examples, H, W, C]` and `label` int32 `[examples]`.
    """
    count, size = len(source.examples), source.image_size
    images = np.empty((count, size, size, source.image_channels), np.uint8)
    labels = np.empty(count, np.int32)
    in_turn = grain.MapDataset.range(count).map(source.examples.__getitem__).to_iter_dataset()
    for i, example in enumerate(in_turn):
        images[i], labels[i] = example["image"], example["label"]
    return {"image": images, "label": labels}


def train_numbers(source: Source, batch_size: int, *, seed: int) -> grain.DatasetIterator:
    """Returns an endless, checkpointable iterator of this process's share of each global batch, as numbers alone.

    They are the `index` int32 `[batch]` of what `train_batches` gives for the same arguments.
    """
    dataset = train_order(source, batch_size, seed).map(np.int32).batch(batch_size // jax.process_count())
    return iter(dataset[jax.process_index() :: jax.process_count()].to_iter_dataset())

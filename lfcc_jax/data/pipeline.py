"""Grain pipelines: a seeded endless one for training, an exact one for evaluation. Both give this process's share."""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from lfcc_jax.data.source import Source

Example = dict[str, Any]


def train_batches(source: Source, batch_size: int, *, seed: int, max_shift: int = 0) -> grain.DatasetIterator:
    """Returns an endless, checkpointable iterator of this process's share of each global batch.

    Every epoch is a new shuffle without the examples that do not fill a batch. Shuffle and augmentation depend on the
    seed and on the example's place in the global order alone, so they are the same for any number of processes.

    Args:
      source: what to read.
      batch_size: global; the process count must divide it.
      seed: of shuffle and augmentation.
      max_shift: images are shifted by up to this many pixels each way, independently, and padded with zeros.

    Returns:
      An iterator of `image` uint8 `[batch, H, W, C]`, `label` int32 `[batch]`, and `index` int32 `[batch]`: each
      example's number in the source.
    """
    steps = steps_per_epoch(source, batch_size)
    dataset = grain.MapDataset.range(len(source.examples)).seed(seed).shuffle()[: steps * batch_size].repeat()
    dataset = dataset.map(lambda index: {**_tidy(source.examples[index]), "index": np.int32(index)})
    if max_shift:
        # Before the process slice: grain seeds each element by its index, which must be the global one.
        dataset = dataset.random_map(lambda example, rng: _shift(example, rng, max_shift))
    dataset = dataset[jax.process_index() :: jax.process_count()]
    dataset = dataset.batch(batch_size // jax.process_count(), drop_remainder=True)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)))


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Returns how many full global batches the source holds."""
    return len(source.examples) // batch_size


def eval_batches(source: Source, batch_size: int) -> Iterator[Example]:
    """Yields every example exactly once, padded to full global batches, as this process's share of each.

    Args:
      source: what to read.
      batch_size: global; the process count must divide it.

    Yields:
      `image`, `label`, and `mask` bool `[batch]`: False where an example only pads the last batch.
    """
    total = len(source.examples)
    padded = -(-total // batch_size) * batch_size

    def example(index: int) -> Example:
        return {**_tidy(source.examples[min(index, total - 1)]), "mask": np.bool_(index < total)}

    dataset = grain.MapDataset.range(padded).map(example)[jax.process_index() :: jax.process_count()]
    dataset = dataset.batch(batch_size // jax.process_count())
    yield from dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=64))


def _tidy(example: Example) -> Example:
    return {"image": np.asarray(example["image"], np.uint8), "label": np.int32(example["label"])}


def _shift(example: Example, rng: np.random.Generator, most: int) -> Example:
    image = example["image"]
    height, width, _ = image.shape
    padded = np.pad(image, ((most, most), (most, most), (0, 0)))
    top, left = rng.integers(0, 2 * most + 1, size=2)
    return {**example, "image": padded[top : top + height, left : left + width]}

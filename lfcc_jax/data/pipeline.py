"""Grain pipelines: endless and seeded for training, exact for evaluation. Each process gets a slice of each batch."""

import functools
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Iterator

import grain
import jax
import numpy as np
from absl import flags

from lfcc_jax.data import host_crops
from lfcc_jax.data.examples import Example, read
from lfcc_jax.data.source import Source

# Threads and prefetched batches per process. A batch of 1024 images at 224 pixels is 154 MB.
_READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
_READ_IN_WORKER = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)


class Batches:
    """Iterates over this process's slice of each global batch, read by threads or by worker processes.

    Its state is the number of batches taken, so a run may resume with a different number of workers. Grain's own state
    has one entry per worker process.
    """

    def __init__(self, source: Source, batches: grain.MapDataset, workers: int):
        self._source = source
        self._batches = batches[jax.process_index() :: jax.process_count()]
        self._workers = workers
        self._taken = 0
        self._skipped: set[int] = set()
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> Iterator[Example]:
        return self

    def __next__(self) -> Example:
        if self._iterator is None:
            self._iterator = iter(self._read_from(self._batches[self._taken :]))
        batch = next(self._iterator)
        self._taken += 1
        if "asked_for" in batch:
            self._report(batch.pop("asked_for"), batch["index"])
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the state, as JSON."""
        return {"next_index": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Restores the position that `get_state` returned."""
        self.close()
        self._taken = state["next_index"]

    def close(self) -> None:
        """Stops the threads or processes."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _report(self, asked_for: np.ndarray, index: np.ndarray) -> None:
        """Prints each image that could not be read, once."""
        for i in sorted({*asked_for[asked_for != index].tolist()} - self._skipped):
            self._skipped.add(i)
            print(f"skipped {self._source.where(i)}: it cannot be read ({len(self._skipped)} so far)", file=sys.stderr)

    def _read_from(self, batches: grain.MapDataset) -> grain.IterDataset:
        if not self._workers:
            return batches.to_iter_dataset(_READ)
        _mark_grain_flags_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._workers)
        return batches.to_iter_dataset(_READ_IN_WORKER).mp_prefetch(options, worker_init_fn=_exit_with_parent)


def train_batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    image_size: int = 0,
    scale: tuple[float, float] = (0.08, 1.0),
    workers: int = 0,
) -> Batches:
    """Returns an endless, checkpointable iterator over this process's slice of each global batch.

    Every epoch is reshuffled; examples that do not fill a batch are dropped. Shuffle and crops depend only on the seed
    and on the example's position in the global order, and processes get consecutive slices of each batch, so the global
    batches are the same for any number of processes.

    Args:
      source: Source to read. Images of one size are not cropped.
      batch_size: Global batch size; the process count must divide it.
      seed: Seed of the shuffle and the crops.
      image_size: Side of the random crops, in pixels; for images that vary in size.
      scale: Smallest and largest fraction of the image in such a crop.
      workers: Number of processes that read and decode; 0 uses threads in this process. Workers exit with this process
        and import its main script, which therefore needs `if __name__ == "__main__"`.

    Returns:
      An iterator of `image` uint8 `[batch, H, W, C]`; `label` int32 `[batch]` if there are classes; and `index` int32
      `[batch]`, each example's position in the source. `next` raises the errors of `examples.read`.
    """
    dataset = train_order(source, batch_size, seed).map(functools.partial(read, source))
    if not source.image_size:
        # Before slicing by process: Grain seeds each element by its index, which must be the global one.
        dataset = dataset.random_map(functools.partial(_random_crop, image_size, scale))
    dataset = dataset.batch(batch_size // jax.process_count(), drop_remainder=True)
    return Batches(source, dataset, workers)


def train_order(source: Source, batch_size: int, seed: int) -> grain.MapDataset:
    """Returns the indices of the examples in the global order of training, over all epochs."""
    kept = steps_per_epoch(source, batch_size) * batch_size
    return grain.MapDataset.range(len(source.examples)).seed(seed).shuffle()[:kept].repeat()


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Returns the number of full global batches in the source."""
    return len(source.examples) // batch_size


def train_indices(source: Source, batch_size: int, *, seed: int) -> grain.DatasetIterator:
    """Returns an endless, checkpointable iterator over the indices in this process's slice of each global batch.

    They equal `index`, int32 `[batch]`, of `train_batches` for the same arguments.
    """
    dataset = train_order(source, batch_size, seed).map(np.int32).batch(batch_size // jax.process_count())
    return iter(dataset[jax.process_index() :: jax.process_count()].to_iter_dataset())


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    image_size: int = 0,
    crop: float = 1.0,
    interpolation: str = "bicubic",
    workers: int = 0,
) -> Iterator[Example]:
    """Yields this process's slice of each global batch: every example exactly once, padded to full batches.

    Args:
      source: Source to read. Images of one size are not cropped.
      batch_size: Global batch size; the process count must divide it.
      image_size: Side of the central crop, in pixels; for images that vary in size.
      crop: As in `host_crops.central_crop`.
      interpolation: As in `host_crops.central_crop`.
      workers: As in `train_batches`.

    Yields:
      `image`, `label` if there are classes, and `mask` bool `[batch]`: False for padding in the last batch, and for
      images that cannot be read.
    """
    total = len(source.examples)
    padded = -(-total // batch_size) * batch_size

    def example(index: int) -> Example:
        decoded = read(source, min(index, total - 1))
        image = decoded["image"]
        if not source.image_size:
            image = host_crops.central_crop(image, image_size, crop, interpolation)
        readable = decoded.get("asked_for", decoded["index"]) == decoded["index"]
        return {**decoded, "image": image, "mask": np.bool_(index < total and readable)}

    dataset = grain.MapDataset.range(padded).map(example).batch(batch_size // jax.process_count())
    for batch in Batches(source, dataset, workers):
        del batch["index"]
        yield batch


def _random_crop(size: int, scale: tuple[float, float], example: Example, rng: np.random.Generator) -> Example:
    return {**example, "image": host_crops.random_crop(example["image"], size, rng, scale)}


def _mark_grain_flags_as_parsed() -> None:
    # Grain reads one of its absl flags to start a worker, which fails in programs that do not parse flags.
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("grain."):
            for flag in module_flags:
                flag.present = max(flag.present, 1)


def _exit_with_parent(worker_index: int, worker_count: int) -> None:
    """Makes a worker process exit when its parent does, even if that is killed. Grain's workers would wait forever."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()

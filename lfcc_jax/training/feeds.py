"""Feeds: bring training batches to the devices, streamed from the host or gathered from images in device memory."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lfcc_jax.data import Inputs, read_all
from lfcc_jax.training.sharding import batch_sharding, replicated, to_global

# step(state, teacher_variables, batch) -> (state, metrics)
Step = Callable[[Any, Any, Any], tuple[Any, dict[str, jax.Array]]]


class Feed(Protocol):
    """Returns data for training steps, in the order set by the run's seed."""

    state: Any  # state of the data iterator after the last `take`, as JSON
    waited: float  # seconds in which `take` waited for images

    def restore(self, state: Any) -> None:
        """Resumes from the state in a checkpoint."""

    def program(self, step: Step) -> Step:
        """Returns the step, or a loop over it, that accepts the result of `take` as its batch."""

    def shapes(self) -> Any:
        """Returns shapes, dtypes and shardings of the result of `take`, for compilation."""

    def take(self, most: int) -> tuple[Any, int]:
        """Returns data for up to `most` steps, and the number of steps."""

    def close(self) -> None:
        """Stops threads and processes that read ahead."""


def create(inputs: Inputs, mesh: Mesh, batch_size: int, seed: int, capacity: int) -> Feed:
    """Returns the feed for some inputs.

    Args:
      inputs: The images.
      mesh: Devices that batches are split over.
      batch_size: Global batch size.
      seed: Seed of the order, and of crops on the host.
      capacity: Maximum number of steps in one `take`.
    """
    if inputs.resident:
        return ResidentFeed(inputs, mesh, batch_size, seed, capacity)
    return StreamFeed(inputs, mesh, batch_size, seed)


def batch_shapes(
    mesh: Mesh, batch_size: int, image_shape: tuple[int, ...], labels: bool = True
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of a training batch.

    Args:
      mesh: Devices, which need not exist.
      batch_size: Global batch size.
      image_shape: `(height, width, channels)` of the images on the host.
      labels: Whether the images have labels.
    """
    split = batch_sharding(mesh)
    index = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=split)
    image = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8, sharding=split)
    return {"image": image, "index": index} | ({"label": index} if labels else {})


class StreamFeed:
    """Streams batches from the host, with one batch of prefetch; see `Feed`."""

    def __init__(self, inputs: Inputs, mesh: Mesh, batch_size: int, seed: int):
        self._batches = inputs.train_batches(batch_size, seed)
        self._shapes = batch_shapes(mesh, batch_size, inputs.host_shape, inputs.images.num_classes > 0)
        self._mesh, self.waited = mesh, 0.0
        self._ahead = None
        self.state = self._batches.get_state()

    def restore(self, state: Any) -> None:
        """Resumes from the state in a checkpoint."""
        self._batches.set_state(state)
        self._ahead, self.state = None, state

    def program(self, step: Step) -> Step:
        """Returns the step itself."""
        return step

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes, dtypes and shardings of a batch."""
        return self._shapes

    def take(self, most: int) -> tuple[dict[str, jax.Array], int]:
        """Returns the next batch."""
        del most
        batch, self.state = self._ahead or self._fetch()
        self._ahead = self._fetch()
        return batch, 1

    def close(self) -> None:
        """Stops threads and processes that read ahead."""
        self._batches.close()

    def _fetch(self) -> tuple[dict[str, jax.Array], Any]:
        start_time = time.monotonic()
        batch = next(self._batches)
        self.waited += time.monotonic() - start_time
        return to_global(batch, self._mesh), self._batches.get_state()


class ResidentFeed:
    """All examples in the memory of every device, and the indices of the next batches; see `Feed`.

    Many steps run as one program without returning to the host; see `make_train_loop`.
    """

    waited = 0.0

    def __init__(self, inputs: Inputs, mesh: Mesh, batch_size: int, seed: int, capacity: int):
        self._examples = jax.device_put(read_all(inputs.train), replicated(mesh))
        self._indices, self._mesh = inputs.train_indices(batch_size, seed), mesh
        self._shape = (capacity, batch_size)
        self._sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))

    @property
    def state(self) -> Any:
        """State of the iterator, for a checkpoint."""
        return self._indices.get_state()

    def restore(self, state: Any) -> None:
        """Resumes from the state in a checkpoint."""
        self._indices.set_state(state)

    def program(self, step: Step) -> Step:
        """Returns a loop over the step."""
        return make_train_loop(step)

    def shapes(self) -> dict[str, Any]:
        """Returns shapes, dtypes and shardings of the loop's input."""
        order = jax.ShapeDtypeStruct(self._shape, jnp.int32, sharding=self._sharding)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self._mesh))
        examples = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in self._examples.items()}
        return {"examples": examples, "order": order, "count": count}

    def take(self, most: int) -> tuple[dict[str, Any], int]:
        """Returns the loop's input for the next `most` steps."""
        rows = [next(self._indices) for _ in range(most)]
        rows += [np.zeros_like(rows[0])] * (self._shape[0] - most)
        order = jax.make_array_from_process_local_data(self._sharding, np.stack(rows), self._shape)
        count = jax.device_put(np.int32(most), replicated(self._mesh))
        return {"examples": self._examples, "order": order, "count": count}, most

    def close(self) -> None:
        """Stops threads that read ahead."""
        self._indices.close()


def make_train_loop(step: Step) -> Step:
    """Returns `loop(state, teacher_variables, feed) -> (state, metrics)`: `feed["count"]` steps in one program.

    Runs without returning to the host, so small networks are not dispatch-bound. Losses and weights are those of the
    same steps one by one, up to rounding.

    Args:
      step: The training step.

    Returns:
      The loop. Its metrics are `[capacity]`, with zeros after the last step.
    """

    def loop(state: Any, teacher_variables: Any, feed: dict[str, Any]) -> tuple[Any, dict[str, jax.Array]]:
        def batch(i: Any) -> dict[str, jax.Array]:
            index = feed["order"][i]
            examples = {name: x.at[index].get(mode="promise_in_bounds") for name, x in feed["examples"].items()}
            return examples | {"index": index}

        def body(i: jax.Array, carry: Any) -> Any:
            state, metrics = carry
            state, new = step(state, teacher_variables, batch(i))
            return state, {name: metrics[name].at[i].set(new[name]) for name in metrics}

        names = jax.eval_shape(step, state, teacher_variables, jax.eval_shape(batch, 0))[1]
        metrics = {name: jnp.zeros(feed["order"].shape[0], jnp.float32) for name in names}
        return jax.lax.fori_loop(0, feed["count"], body, (state, metrics))

    return loop

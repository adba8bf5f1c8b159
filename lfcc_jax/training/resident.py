"""Many training steps in one program, on a data set that lives in device memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lfcc_jax.training.sharding import batch_sharding, replicated

Feed = dict[str, Any]


def make_train_loop(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `loop(state, teacher_variables, feed) -> (state, metrics)`, to be jitted: as many steps as a feed says.

    Nothing is asked of the host in between, so small networks do not wait for it. The losses and weights are those of
    the same steps one by one, but for rounding.

    Args:
      step: as `make_train_step` returns it.

    Returns:
      The loop. Its metrics are `[capacity]`, with zeros after the last step.
    """

    def loop(state: Any, teacher_variables: Any, feed: Feed) -> tuple[Any, dict[str, jax.Array]]:
        def batch(i: Any) -> dict[str, jax.Array]:
            index = feed["order"][i]
            found = {name: x.at[index].get(mode="promise_in_bounds") for name, x in feed["examples"].items()}
            return found | {"index": index}

        def body(i: jax.Array, carry: Any) -> Any:
            state, metrics = carry
            state, new = step(state, teacher_variables, batch(i))
            return state, {name: metrics[name].at[i].set(new[name]) for name in metrics}

        names = jax.eval_shape(step, state, teacher_variables, jax.eval_shape(batch, 0))[1]
        metrics = {name: jnp.zeros(feed["order"].shape[0], jnp.float32) for name in names}
        return jax.lax.fori_loop(0, feed["count"], body, (state, metrics))

    return loop


class ResidentFeed:
    """What `make_train_loop`'s loop is fed with: all examples, and the numbers of those of the next batches.

    Args:
      examples: `image` and `label` of all examples; every process has all of them.
      numbers: an iterator of this process's share of each batch, as numbers of examples.
      mesh: every device of it gets all examples.
      batch_size: global.
      capacity: the largest number of steps that are ever asked for at once.

    Attributes:
      state: of the iterator, just after the batches that were last handed out.
    """

    def __init__(self, examples: dict[str, np.ndarray], numbers: Any, mesh: Mesh, batch_size: int, capacity: int):
        self._examples = jax.device_put(examples, replicated(mesh))
        self._numbers, self._mesh = numbers, mesh
        self._shape = (capacity, batch_size)
        self._sharding = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))

    @property
    def state(self) -> Any:
        """Of the iterator, as a checkpoint must hold it."""
        return self._numbers.get_state()

    def shapes(self) -> Feed:
        """Returns shapes and placements of a feed, to compile the loop for."""
        order = jax.ShapeDtypeStruct(self._shape, jnp.int32, sharding=self._sharding)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self._mesh))
        examples = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in self._examples.items()}
        return {"examples": examples, "order": order, "count": count}

    def close(self) -> None:
        """Ends threads that read ahead."""
        self._numbers.close()

    def take(self, count: int) -> Feed:
        """Returns the feed of the next `count` steps."""
        rows = [next(self._numbers) for _ in range(count)]
        rows += [np.zeros_like(rows[0])] * (self._shape[0] - count)
        order = jax.make_array_from_process_local_data(self._sharding, np.stack(rows), self._shape)
        return {
            "examples": self._examples,
            "order": order,
            "count": jax.device_put(np.int32(count), replicated(self._mesh)),
        }

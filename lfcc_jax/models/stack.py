"""Equal blocks, one after the other, with their parameters stacked along a leading axis."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lfcc_jax.models.network import Network


def drop_path_rates(last: float, depth: int) -> tuple[float, ...]:
    """Returns the rates of stochastic depth of `depth` blocks: from zero at the first to `last`, in equal steps."""
    return tuple(last * i / max(depth - 1, 1) for i in range(depth))


def stack(
    network: Network,
    name: str,
    blocks: Sequence[nn.Module],
    rates: Sequence[float],
    x: Array,
    train: bool,
    *,
    ends: Sequence[int] | None = None,
) -> list[Array]:
    """Applies `len(rates)` blocks whose parameters have the same shapes, and returns what some of them give.

    The parameters of all blocks are one tree under `name`, each leaf with the blocks along its first axis, whether they
    are compiled one by one or as a loop.

    Args:
      network: owns the parameters, and is inside its compact method; its `remat` and `scan` are heeded.
      name: of the parameters.
      blocks: detached modules (`parent=None`), called as `block(x, train, drop_path)` and returning an array like `x`.
        They take turns: two of them alternate, as regular and shifted windows do.
      rates: stochastic depth of each block; their number and every one of `ends` must be a multiple of `len(blocks)`.
      x: the input.
      train: whether blocks draw dropout and skip branches.
      ends: after which blocks, counted from one, the result is wanted; after the last if None.

    Returns:
      One array for each of `ends`, all like `x`.
    """
    depth, turns = len(rates), len(blocks)
    params = network.param(name, _init, blocks[0], depth, x)
    random = train and network.has_rng("dropout")
    keys = jax.random.split(network.make_rng("dropout"), depth) if random else None
    stacked = params, jnp.asarray(rates) if train and max(rates) > 0 else None, keys

    def one_turn(x: Array, of_turn: tuple) -> tuple[Array, None]:
        for i, block in enumerate(blocks):
            of_block, rate, key = jax.tree.map(lambda leaf, i=i: leaf[i], of_turn)
            x = block.apply({"params": of_block}, x, train, rate, rngs=None if key is None else {"dropout": key})
        return x, None

    one_turn = jax.checkpoint(one_turn) if network.remat else one_turn
    ends = tuple(ends or (depth,))
    results = []
    for start, end in zip((0, *ends), ends, strict=False):
        part = jax.tree.map(lambda leaf, a=start, b=end: leaf[a:b].reshape(-1, turns, *leaf.shape[1:]), stacked)
        x, _ = jax.lax.scan(one_turn, x, part, unroll=1 if network.scan else (end - start) // turns)
        results.append(x)
    return results


def _init(key: Array, block: nn.Module, depth: int, x: Array) -> dict:
    return jax.vmap(lambda key: block.init(key, x, False, None)["params"])(jax.random.split(key, depth))

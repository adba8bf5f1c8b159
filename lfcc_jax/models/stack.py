"""Applies equal blocks one after the other, with their parameters stacked along a leading axis.

Not `nn.scan`: blocks may alternate, some outputs in the middle are features, and the parameters have one layout whether
the blocks are compiled one by one or as a loop.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lfcc_jax.models.attention import plain_attention
from lfcc_jax.models.network import Network


def drop_path_rates(last: float, depth: int) -> tuple[float, ...]:
    """Returns the stochastic depth rate of each of `depth` blocks, from zero at the first to `last` in equal steps."""
    return tuple(last * i / max(depth - 1, 1) for i in range(depth))


def stack(
    network: Network,
    name: str,
    blocks: Sequence[nn.Module],
    rates: Sequence[float],
    x: Array,
    train: bool,
    *,
    taps: Sequence[int] | None = None,
) -> list[Array]:
    """Applies `len(rates)` blocks with parameters of the same shapes, and returns the outputs of some of them.

    The parameters of all blocks are one tree under `name`, with the blocks along the first axis of each leaf.

    Args:
      network: Owner of the parameters, inside its compact method. Its `remat` and `scan` apply.
      name: Name of the parameters.
      blocks: Detached modules (`parent=None`), called as `block(x, train, drop_path)` and returning an array like `x`.
        Several of them take turns, as regular and shifted windows do.
      rates: Stochastic depth rate of each block. Their number and all `taps` must be multiples of `len(blocks)`.
      x: Input of the first block.
      train: Whether to apply dropout and stochastic depth.
      taps: Blocks, counted from one, whose outputs are returned; only the last if None.

    Returns:
      One array for each of `taps`, of the shape of `x`.
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
    taps = tuple(taps or (depth,))
    results = []
    for start, end in zip((0, *taps), taps, strict=False):
        part = jax.tree.map(lambda leaf, a=start, b=end: leaf[a:b].reshape(-1, turns, *leaf.shape[1:]), stacked)
        x, _ = jax.lax.scan(one_turn, x, part, unroll=1 if network.scan else (end - start) // turns)
        results.append(x)
    return results


def _init(key: Array, block: nn.Module, depth: int, x: Array) -> dict:
    with plain_attention():
        return jax.vmap(lambda key: block.init(key, x, False, None)["params"])(jax.random.split(key, depth))

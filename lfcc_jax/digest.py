"""Sharding-independent digests of arrays, and checks for NaN and infinity."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def digests(tree: Any) -> dict[str, str]:
    """Returns dtype, shape and 64-bit digest of every array of a tree, by its path.

    The digest is a sum over the elements, modulo 2^64: the bits of each element, as an unsigned integer, times an odd
    weight for each of its indices. A single flipped bit always changes it; it does not depend on how the array is split
    over devices and processes; and nothing is compiled. Any other change is missed with a probability of about 2^-31
    (multilinear hashing, elements of up to 32 bits). It does not protect against forgery.

    Args:
      tree: NumPy or JAX arrays, sharded in any way. All processes must call this with the same tree.
    """
    leaves = {name: jax.random.key_data(x) if _is_key(x) else x for name, x in _named(tree)}
    sums = _over_processes(_in_threads(_partial_digest, leaves.values()))
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}] {value:016x}"
        for (name, leaf), value in zip(_named(tree), sums.tolist(), strict=True)
    }


def changes(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Returns the paths of arrays whose digests differ, or that are in only one of the two."""
    return [name for name in sorted({*recorded, *found}) if recorded.get(name) != found.get(name)]


def not_finite(tree: Any) -> list[str]:
    """Returns the paths of arrays that contain NaN or infinity.

    Args:
      tree: NumPy or JAX arrays, sharded in any way. All processes must call this with the same tree.
    """
    leaves = {name: leaf for name, leaf in _named(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    counts = _over_processes(_in_threads(_count_nonfinite_shards, leaves.values()))
    return [name for name, count in zip(leaves, counts, strict=True) if count]


def some(paths: Sequence[str]) -> str:
    """Returns the first of several paths and how many more there are, for an error message."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _in_threads(function: Callable[[Any], int], leaves: Any) -> list[int]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, leaves))


def _over_processes(partial: list[int]) -> np.ndarray:
    # JAX has no 64-bit integers by default, so each number is sent as two halves.
    halves = np.array(partial, np.uint64).reshape(-1, 1).view(np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves, tiled=False))
    return gathered.reshape(jax.process_count(), *halves.shape).view(np.uint64)[..., 0].sum(axis=0, dtype=np.uint64)


def _shards(array: Any) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yields this process's shards of an array, without replicas, and the index at which each begins."""
    if jax.process_index() > 0 and getattr(array, "is_fully_addressable", True):
        return  # every process has it; only the first counts it
    if not isinstance(array, jax.Array):
        yield np.asarray(array), [0] * np.ndim(array)
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield np.asarray(shard.data), [part.start or 0 for part in shard.index]


def _partial_digest(array: Any) -> int:
    total = 0
    for piece, begin in _shards(array):
        bits = piece.view(f"u{piece.dtype.itemsize}")
        for axis in reversed(range(bits.ndim)):  # removes the last axis
            weights = _weights(array.shape[axis], axis)[begin[axis] : begin[axis] + bits.shape[axis]]
            bits = np.einsum("...i,i->...", bits, weights)
        total += int(bits)
    return total % 2**64


def _count_nonfinite_shards(array: Any) -> int:
    return sum(not np.isfinite(piece).all() for piece, _ in _shards(array))


@functools.lru_cache(maxsize=128)
def _weights(count: int, axis: int) -> np.ndarray:
    """Returns odd pseudo-random numbers: outputs of SplitMix64 (Steele et al., 2014), one stream per axis."""
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(axis << 40)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)

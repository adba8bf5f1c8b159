"""Functions of images, computed for a few images of each device at a time."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lfcc_jax.errors import UserError
from lfcc_jax.training.sharding import batch_sharding

# What is computed from so few images between the layers of a network fits into the on-chip memory of a TPU.
_ON_A_TPU = 8

# Wraps a function of arrays `[batch, ...]`.
OverImages = Callable[[Callable[..., Any]], Callable[..., Any]]


def in_parts(mesh: Mesh, size: int = -1) -> OverImages:
    """Returns a wrapper that makes a function of images run once for each part of the batch, one part after the other.

    Use it for functions that see each image alone and have no gradient. On a TPU, XLA then keeps their intermediate
    results on the chip instead of in its main memory.

    Args:
      mesh: Devices that the batch is split over. A part has the same number of images from each.
      size: Number of images of each device in a part; must divide their number. 0 computes all at once. -1 chooses: on
        TPUs the largest divisor from 4 to 8 if there is one, otherwise 0; 0 too if weights are split over devices.

    Returns:
      A function that takes and returns a function of arrays `[batch, ...]`, whose results are arrays `[batch, ...]`.

    Raises:
      UserError: if the wrapped function gets a batch that cannot be divided so.
    """

    def over_images(function: Callable[..., Any]) -> Callable[..., Any]:
        def in_turn(*arrays: jax.Array) -> Any:
            check_parts(size, arrays[0].shape[0], mesh)
            count = arrays[0].shape[0] // mesh.size
            part = _automatic(count, mesh) if size == -1 else size
            if part in (0, count):
                return function(*arrays)
            parts = [_split(x, count // part, mesh) for x in arrays]
            results = jax.lax.map(lambda one: function(*one), parts)
            return jax.tree.map(lambda x: _joined(x, mesh), results)

        return in_turn

    return over_images


def check_parts(size: int, batch_size: int, mesh: Mesh, where: str = "config.images_at_once") -> None:
    """Raises `UserError` if a number of images of each device in a part does not divide their number."""
    count = batch_size // mesh.size
    if size > 0 and count % size:
        fits = max(n for n in range(1, min(size, count) + 1) if count % n == 0)
        raise UserError(
            f"{where} must divide the number of images of each device, {count}, got {size}; use {fits}, or 0 for all"
        )


def _automatic(count: int, mesh: Mesh) -> int:
    if mesh.devices.flat[0].platform != "tpu" or mesh.shape["fsdp"] > 1:
        return 0
    return next((n for n in range(_ON_A_TPU, _ON_A_TPU // 2 - 1, -1) if count % n == 0), 0)


def _split(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """Returns `[parts, batch / parts, ...]`, without moving images between devices."""
    x = x.reshape(mesh.size, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(parts, math.prod(x.shape[1:3]), *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))))


def _joined(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Undoes `_split`."""
    parts = x.shape[0]
    x = x.reshape(parts, mesh.size, -1, *x.shape[2:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x.reshape(-1, *x.shape[3:]), batch_sharding(mesh))

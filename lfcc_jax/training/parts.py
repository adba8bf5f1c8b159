"""Functions of images, computed for a few images of each device at a time."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lfcc_jax.errors import UserError
from lfcc_jax.training.sharding import batch_sharding

# What the layers of a network compute from so many pixels fits into the on-chip memory of a TPU: 8 images of 224 x 224.
_PIXELS_ON_A_TPU = 8 * 224**2


@dataclasses.dataclass(frozen=True)
class Parts:
    """Makes a function of images run once for each part of the batch, one part after the other.

    `Parts(mesh)(function)` takes the same arrays `[batch, ...]`, the last of which are the images, and returns what
    `function` returns for the whole batch. Use it for functions that treat each image on its own and have no gradient.
    On a TPU, XLA then keeps their intermediate results on the chip instead of in its main memory.

    Attributes:
      mesh: Devices that the batch is split over. A part has the same number of images from each.
      size: Number of images of each device in a part; must divide their number. 0 takes all at once. -1 takes all,
        except on TPUs without `fsdp`: there, the largest divisor that has at most the pixels of 8 images of 224 x 224
        and at least about half as many; all if there is none.
    """

    mesh: Mesh
    size: int = -1

    def count(self, images: Any) -> int:
        """Returns the number of parts of some images `[batch, height, width, channels]`; 1 for arrays of other shapes.

        Raises:
          UserError: if the batch cannot be divided so.
        """
        if images.ndim != 4:
            return 1
        check_parts(self.size, images.shape[0], self.mesh)
        of_device = images.shape[0] // self.mesh.size
        size = self._automatic(of_device, *images.shape[1:3]) if self.size == -1 else self.size
        return of_device // size if size else 1

    def _automatic(self, of_device: int, height: int, width: int) -> int:
        if self.mesh.devices.flat[0].platform != "tpu" or self.mesh.shape["fsdp"] > 1:
            return 0
        most = max(1, _PIXELS_ON_A_TPU // (height * width))
        if of_device <= most:
            return 0
        return next((n for n in range(most, (most - 1) // 2, -1) if of_device % n == 0), 0)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function of whole batches."""

        def in_turn(*arrays: jax.Array) -> Any:
            count = self.count(arrays[-1])
            if count == 1:
                return function(*arrays)
            parts = [_split(x, count, self.mesh) for x in arrays]
            results = jax.lax.map(lambda part: function(*part), parts)
            if any(x.shape[1:2] != parts[-1].shape[1:2] for x in jax.tree.leaves(results)):
                return function(*arrays)  # a network of another library returns something that is not per image
            return jax.tree.map(lambda x: _joined(x, self.mesh), results)

        return in_turn


def check_parts(size: int, batch_size: int, mesh: Mesh, where: str = "config.images_at_once") -> None:
    """Raises `UserError` if a number of images of each device in a part does not divide their number."""
    count = batch_size // mesh.size
    if size > 0 and count % size:
        fits = max(n for n in range(1, min(size, count) + 1) if count % n == 0)
        raise UserError(
            f"{where} must divide the number of images of each device, {count}, got {size}; use {fits}, or 0 for all"
        )


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

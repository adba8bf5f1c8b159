"""Sharding: a mesh with axes `data` and `fsdp`, and the placement of batches and weights on it."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lfcc_jax import runtime
from lfcc_jax.arguments import AtLeast
from lfcc_jax.errors import UserError


def create_mesh(data: Annotated[int, AtLeast(-1)] = -1, fsdp: Annotated[int, AtLeast(1)] = 1) -> Mesh:
    """Returns a mesh of `data` x `fsdp` devices, with automatic sharding propagation.

    Args:
      data: Number of devices along the axis that splits only the batch; -1 uses all that `fsdp` leaves.
      fsdp: Number of devices along the axis that also splits large weights and the optimizer's state.

    Raises:
      UserError: if there are too few devices, or none for the platforms in JAX_PLATFORMS.
    """
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError if jaxlib does not support the platform
        platforms = jax.config.jax_platforms
        raise UserError(f"JAX_PLATFORMS={platforms}: no such device. {error}") from error
    if fsdp < 1 or (data < 1 and data != -1) or (data == -1 and len(devices) % fsdp):
        raise UserError(f"config.mesh: data={data}, fsdp={fsdp} does not divide {len(devices)} devices")
    data = len(devices) // fsdp if data == -1 else data
    if data * fsdp > len(devices) or (jax.process_count() > 1 and data * fsdp != len(devices)):
        raise UserError(
            f"config.mesh: data={data} x fsdp={fsdp} uses {data * fsdp} devices, but the run has {len(devices)}"
        )
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types, devices=devices[: data * fsdp])


def check_batch_size(batch_size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` unless the global batch size is a multiple of the number of devices."""
    if batch_size < 1 or batch_size % mesh.size:
        less = batch_size // mesh.size * mesh.size
        fits = f"{less} or {less + mesh.size}" if less else f"{mesh.size}"
        raise UserError(
            f"{where} must be a multiple of the number of devices, {mesh.size}, got {batch_size}; use {fits}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a batch: its first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def weight_shardings(shapes: Any, mesh: Mesh, min_size: int = 2**16) -> Any:
    """Returns a placement for every array of a tree of weights or optimizer state, from its shape alone.

    Args:
      shapes: A tree of arrays or shapes.
      mesh: The mesh. With one device along `fsdp`, everything is replicated.
      min_size: Arrays with fewer elements are replicated, since gathering them costs more than the memory is worth.

    Returns:
      A tree of shardings: the longest dimension that the `fsdp` axis divides is split, if the array is large.
    """
    fsdp = mesh.shape["fsdp"]

    def place(array: Any) -> NamedSharding:
        axes = [i for i, n in enumerate(array.shape) if n % fsdp == 0]
        if fsdp == 1 or not axes or array.size < min_size:
            return replicated(mesh)
        longest = max(axes, key=lambda i: array.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(("fsdp" if i == longest else None) for i in range(array.ndim))))

    return jax.tree.map(place, shapes)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places this process's part of a batch on its devices, as one global array per entry."""
    sharding = batch_sharding(mesh)
    arrays = {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
    return runtime.ready(arrays)


def placed(shapes: Any, mesh: Mesh) -> Any:
    """Returns a tree of shapes with the placement of `weight_shardings`, for compilation or for restoring."""
    placement = weight_shardings(shapes, mesh)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placement)


def on_host(arrays: Any) -> Any:
    """Returns arrays of this process as numpy arrays, which can be placed on the devices of all processes."""

    def copy(x: jax.Array) -> Any:
        return x if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else np.asarray(x)

    return jax.tree.map(copy, arrays)

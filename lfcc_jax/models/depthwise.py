"""Depthwise convolution over shifted maps, for CPUs, where XLA's convolution and both of its gradients are slow."""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.models.layers import as_last
from lfcc_jax.precision import wide_dtype

# Largest side of kernels whose taps are few enough to be summed again by each layer that reads the result.
_SMALL_KERNEL = 3
# Positions whose products are added in one step of the kernel's gradient. Fewer are slower; more compile longer.
_POSITIONS = 28


def depthwise_by_shifts(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "size size 1 channels"], stride: int
) -> Float[Array, "batch rows columns channels"]:
    """Computes a depthwise convolution as the sum of shifted maps times the kernel's taps.

    Its gradient is a custom one, so `jax.jvp` of it is an error; `jax.jvp` of its gradient is not.

    Args:
      x: Maps.
      kernel: Kernel of an odd size, one channel for each of the map's. Maps are padded by half of it.
      stride: Stride along both axes.

    Returns:
      Maps of the size of `x` divided by `stride`, rounded up, accumulated in float32 or wider.
    """
    # In `jax.shard_map`, each device has its own images and the same kernel; the gradient of this cast is a sum.
    x, kernel = _varying_as(kernel, x), _varying_as(x, kernel)
    return _depthwise(x, kernel, stride)


def _varying_as(x: Array, y: Array) -> Array:
    axes = tuple(jax.typeof(x).manual_axis_type.varying - jax.typeof(y).manual_axis_type.varying)
    return jax.lax.pcast(y, axes, to="varying") if axes else y


def _shifted_sum(x: Array, kernel: Array, stride: int) -> Array:
    size = kernel.shape[0]
    padded = _padded(x, size // 2, size // 2, size // 2)
    if size <= _SMALL_KERNEL:
        return _sum_of_taps(padded, kernel, stride)
    # A loop over the two halves of the rows writes its result. Without one, XLA fuses the sum into each of the layers
    # that read it, and repeats it in each: a ConvNeXt trains half as fast.
    # All of `start` is overwritten; it has the result's shape, dtype and sharding.
    start = part_of(x, (0, 0), tuple((n - 1) // stride + 1 for n in x.shape[1:3]), stride)
    half = -(-start.shape[1] // 2)

    def write_half(i: Array, total: Array) -> Array:
        row = i * (start.shape[1] - half)
        part = jax.lax.dynamic_slice_in_dim(padded, row * stride, (half - 1) * stride + size, 1)
        return jax.lax.dynamic_update_slice_in_dim(total, _sum_of_taps(part, kernel, stride), row, 1)

    return jax.lax.fori_loop(0, 2, write_half, start)


_depthwise = jax.custom_vjp(_shifted_sum, nondiff_argnums=(2,))


def _sum_of_taps(padded: Array, kernel: Array, stride: int) -> Array:
    size, wide = kernel.shape[0], wide_dtype(padded.dtype)
    x, taps = padded.astype(wide), kernel.astype(wide)
    counts = tuple((n - size) // stride + 1 for n in padded.shape[1:3])
    total = sum(
        part_of(x, (i, j), counts, stride) * as_last(taps[i, j, 0], x)
        for i, j in itertools.product(range(size), repeat=2)
    )
    return total.astype(padded.dtype)


def part_of(x: Array, start: tuple[int, int], counts: tuple[int, int], stride: int = 1) -> Array:
    """Returns `counts` rows and columns of maps, `stride` apart; a slice even where the batch is symbolic."""
    ends = (i + (n - 1) * stride + 1 for i, n in zip(start, counts, strict=True))
    return jax.lax.slice(x, (0, *start, 0), (x.shape[0], *ends, x.shape[3]), (1, stride, stride, 1))


def interleaved(parts: list[list[Array]]) -> Array:
    """Returns maps whose row `n * i + r` and column `n * j + c` are row i and column j of `parts[r][c]`."""
    x = jnp.stack([jnp.stack(row, 3) for row in parts], 2)
    batch, rows, row_parts, columns, column_parts, channels = x.shape
    return x.reshape(batch, rows * row_parts, columns * column_parts, channels)


def _padded(x: Array, before: int, after_rows: int, after_columns: int) -> Array:
    return jnp.pad(x, ((0, 0), (before, after_rows), (before, after_columns), (0, 0)))


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_sum(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if stride == 1:
        x_gradient = _shifted_sum(gradient, kernel[::-1, ::-1], 1)
    else:
        x_gradient = _strided_input_gradient(gradient, kernel, stride, x.shape[1:3])
    return x_gradient, _kernel_gradient(x, gradient, kernel.shape[0], stride).astype(kernel.dtype)


_depthwise.defvjp(_forward, _backward)


def _strided_input_gradient(gradient: Array, kernel: Array, stride: int, shape: tuple[int, int]) -> Array:
    """Returns the gradient of maps of `shape`: rows (and columns) that are `stride` apart have the same taps."""
    size, wide = kernel.shape[0], wide_dtype(gradient.dtype)
    # Row `stride * m + row` of the padded map is read by tap `row + stride * n` of the output's row m - n.
    rows, columns = ((n - 1 + size // 2) // stride + 1 for n in shape)
    most = (size - 1) // stride
    padded = _padded(gradient, most, rows - gradient.shape[1], columns - gradient.shape[2]).astype(wide)
    taps = kernel.astype(wide)

    def of_offset(row: int, column: int) -> Array:
        total = jnp.zeros_like(part_of(padded, (0, 0), (rows, columns)))
        for i, j in itertools.product(range(row, size, stride), range(column, size, stride)):
            part = part_of(padded, (most - i // stride, most - j // stride), (rows, columns))
            total = total + part * as_last(taps[i, j, 0], part)
        return total

    total = interleaved([[of_offset(row, column) for column in range(stride)] for row in range(stride)])
    return part_of(total, (size // 2, size // 2), shape).astype(gradient.dtype)


def _kernel_gradient(x: Array, gradient: Array, size: int, stride: int) -> Array:
    """Returns the gradient of a kernel, float32 or wider, as a loop over tiles of the output's positions."""
    batch, height, width, channels = gradient.shape
    tile_width = -(-width // -(-width // _POSITIONS))
    tile_height = min(height, _POSITIONS // tile_width)
    rows, columns = -(-height // tile_height), -(-width // tile_width)
    gradient = _padded(gradient, 0, rows * tile_height - height, columns * tile_width - width)
    # Rows and columns of the padded map that all tiles read, and that one tile does.
    read = [stride * (n - 1) + size for n in gradient.shape[1:3]]
    padded = _padded(x, size // 2, *(max(0, n - size // 2 - m) for n, m in zip(read, x.shape[1:3], strict=True)))
    tile_read = [stride * (n - 1) + size for n in (tile_height, tile_width)]
    wide = wide_dtype(x.dtype)

    def add_tile(total: Array, tile: Array) -> tuple[Array, None]:
        row, column = tile // columns * tile_height, tile % columns * tile_width
        start = (0, row * stride, column * stride, 0)
        around = jax.lax.dynamic_slice(padded, start, (batch, *tile_read, channels)).astype(wide)
        here = jax.lax.dynamic_slice(gradient, (0, row, column, 0), (batch, tile_height, tile_width, channels))
        here = here.astype(wide)
        for i, j in itertools.product(range(tile_height), range(tile_width)):
            window = part_of(around, (stride * i, stride * j), (size, size))
            total = total + window * part_of(here, (i, j), (1, 1))
        return total, None

    # Images are summed last, so that devices communicate once.
    zeros = jnp.zeros_like(part_of(padded, (0, 0), (size, size)), wide)
    total, _ = jax.lax.scan(add_tile, zeros, jnp.arange(rows * columns))
    return total.sum(0)[:, :, None]

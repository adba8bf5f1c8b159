"""Convolutions and pooling in the form that is fast: matrix products, blocks of pixels, shifted maps."""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError
from lfcc_jax.models.depthwise import depthwise_by_shifts, interleaved, part_of
from lfcc_jax.models.layers import as_last, product
from lfcc_jax.precision import wide_dtype

# PyTorch's Kaiming fan-out initialization.
he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Flax counts the outputs of a depthwise kernel over all groups, but each group has one input and one output.
_he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv(
    width: int, size: int, stride: int = 1, *, depthwise: bool = False, dtype: Any, name: str | None = None
) -> "Conv":
    """Returns a `size` x `size` convolution without bias, initialized as in timm; see `Conv`."""
    init = _he_depthwise if depthwise else he
    return Conv(width, size, stride, depthwise, kernel_init=init, dtype=dtype, name=name)


class Conv(nn.Module):
    """A convolution of an odd size, padded as in PyTorch: on all sides, where XLA's `SAME` may pad one side only.

    Same parameters and results as `nn.Conv`. A 1x1 convolution is computed as a matrix product, except in evaluation on
    NVIDIA GPUs. On a CPU, a depthwise one is computed by `depthwise_by_shifts`; and one whose result is smaller than
    the kernel as a matrix product, since XLA takes up to 80 times as long.

    Attributes:
      features: Number of output channels.
      size: Side of the kernel.
      stride: Stride along both axes.
      depthwise: Whether each output channel sees only the input channel of its index; `features` is then their number.
      use_bias: Whether to add a bias.
      kernel_init: Initializer of the kernel, `[size, size, channels, features]`, or `[size, size, 1, features]`.
      dtype: Dtype of the computation.
    """

    features: int
    size: int
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = False
    kernel_init: Any = he
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        factor: Float[Array, " features"] | None = None,
        shift: Float[Array, " features"] | None = None,
    ) -> Float[Array, "batch rows columns features"]:
        """Returns maps of the size of `x` divided by the stride, rounded up; times `factor`, plus `shift`."""
        shape = (self.size, self.size, 1 if self.depthwise else x.shape[-1], self.features)
        kernel = _scaled(self.param("kernel", self.kernel_init, shape), factor, self.dtype)
        x = x.astype(self.dtype)
        if self.depthwise:
            by_shifts = functools.partial(depthwise_by_shifts, stride=self.stride)
            standard = functools.partial(_convolution, stride=self.stride, groups=self.features)
            x = jax.lax.platform_dependent(x, kernel, cpu=by_shifts, default=standard)
        elif self.size == 1 and factor is not None:
            # cuDNN adds bias and shortcut, and applies ReLU, in the same kernel. XLA's matrix products may not.
            standard, as_product = (functools.partial(f, stride=self.stride) for f in (_convolution, _product))
            x = jax.lax.platform_dependent(x, kernel, cuda=standard, default=as_product)
        elif self.size == 1:
            x = _product(x, kernel, self.stride)
        elif any((n - 1) // self.stride + 1 < self.size for n in x.shape[1:3]):
            standard, by_taps = (functools.partial(f, stride=self.stride) for f in (_convolution, _by_taps))
            x = jax.lax.platform_dependent(x, kernel, cpu=by_taps, default=standard)
        else:
            x = _convolution(x, kernel, self.stride)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            shift = bias if factor is None else bias * factor + shift
        return x if shift is None else x + as_last(shift, x).astype(self.dtype)


def _scaled(kernel: Array, factor: Array | None, dtype: Any) -> Array:
    """Returns the kernel in a dtype, with its output channels multiplied by `factor`."""
    return (kernel if factor is None else kernel.astype(factor.dtype) * as_last(factor, kernel)).astype(dtype)


def _product(x: Array, kernel: Array, stride: int) -> Array:
    for axis in (1, 2):
        x = jax.lax.slice_in_dim(x, 0, None, stride, axis)
    return product(x, kernel[0, 0])


def _convolution(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )


def _by_taps(x: Array, kernel: Array, stride: int) -> Array:
    """Computes `_convolution` as one matrix product over the pixels that each pixel of the result reads."""
    dtype, wide = x.dtype, wide_dtype(x.dtype)
    x, kernel = x.astype(wide), kernel.astype(wide)  # also the sums of gradients over taps
    reach = kernel.shape[0] // 2
    rows, columns = ([i for i in range(kernel.shape[0]) if abs(i - reach) < n] for n in x.shape[1:3])
    counts = tuple((n - 1) // stride + 1 for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    patches = [part_of(padded, tap, counts, stride) for tap in itertools.product(rows, columns)]
    kernel = kernel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # other taps would read zeros only
    return product(jnp.concatenate(patches, -1), kernel.reshape(-1, kernel.shape[-1])).astype(dtype)


def to_blocks(x: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch rows columns features"]:
    """Moves each `size` x `size` block of pixels into the channels, row by row; `size` must divide height and width."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, height // size, width // size, size * size * channels)


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel size, computed as one matrix product over patches.

    Same parameters and results as `nn.Conv(features, (size, size), size, "VALID")`: pixels at the bottom and right that
    do not fill a patch are ignored. Convolution libraries are slow with few input channels.

    Attributes:
      features: Number of output channels.
      size: Side of a patch, in pixels.
      kernel_init: Initializer of the kernel, `[size, size, channels, features]`.
      bias_init: Initializer of the bias.
      dtype: Dtype of the computation.
    """

    features: int
    size: int
    kernel_init: Any
    bias_init: Any = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns features"]:
        """Returns one vector per patch."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        x, kernel, bias = (v.astype(self.dtype) for v in (x, kernel, bias))
        rows, columns = (n // self.size for n in x.shape[1:3])
        if not rows or not columns:
            least, given = f"{self.size} x {self.size}", " x ".join(map(str, x.shape[1:3]))
            raise UserError(f"images are too small: {self.name} needs maps of at least {least}, got {given}")
        x = to_blocks(x[:, : rows * self.size, : columns * self.size], self.size)
        return product(x, kernel.reshape(-1, self.features)) + as_last(bias, x)


class StemConv(nn.Module):
    """A 7x7 convolution with stride 2 and padding 3, computed as a 4x4 convolution over 2x2 blocks of pixels.

    Same parameters and results as `conv(features, 7, 2)`. Known as space-to-depth: four times the channels make
    better use of an accelerator's matrix units, which three channels leave mostly idle.

    Attributes:
      features: Number of output channels.
      dtype: Dtype of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        factor: Float[Array, " features"] | None = None,
        shift: Float[Array, " features"] | None = None,
    ) -> Float[Array, "batch rows columns features"]:
        """Returns maps of half the size, rounded up; times `factor`, plus `shift`."""
        kernel = _scaled(self.param("kernel", he, (7, 7, x.shape[-1], self.features)), factor, self.dtype)
        x = x.astype(self.dtype)
        # Output i reads pixels 2i - 3 to 2i + 3. A zero tap in front makes that blocks i - 2 to i + 1.
        kernel = to_blocks(jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).transpose(3, 0, 1, 2), 2)
        # An odd size gets one more row of zeros, which the padding has anyway.
        x = to_blocks(jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))), 2)
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(2, 1), (2, 1)], dimension_numbers=("NHWC", "OHWI", "NHWC")
        )
        return x if shift is None else x + as_last(shift, x).astype(self.dtype)


def max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns channels"]:
    """Returns the largest value of each 3x3 window with stride 2 and padding 1.

    On CPUs and NVIDIA GPUs, this is a maximum over shifted maps, because the gradient of `nn.max_pool` is slow, or
    moves several times the bytes.
    """
    standard = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)])
    return jax.lax.platform_dependent(x, cpu=max_pool_by_shifts, cuda=max_pool_by_shifts, default=standard)


@jax.custom_vjp
def max_pool_by_shifts(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns channels"]:
    """Computes `max_pool` over nine shifted maps; among equal values, the first in a window gets the gradient."""
    return _max_and_index(x)[0]


def _max_and_index(x: Array) -> tuple[Array, Array]:
    """Returns the maximum of each window, and which of its nine values that is."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((n + 1) // 2 for n in x.shape[1:3])
    for tap in range(9):
        value = part_of(padded, divmod(tap, 3), (rows, columns), 2)
        if tap == 0:
            largest, index = value, jnp.zeros(value.shape, jnp.int8)
        else:
            index = jnp.where((value > largest) | (jnp.isnan(value) & ~jnp.isnan(largest)), jnp.int8(tap), index)
            largest = jnp.maximum(value, largest)
    return largest, index


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    largest, index = _max_and_index(x)
    return largest, (index, jnp.zeros(x.shape[1:3], bool))


# For even and for odd rows (or columns): the taps that read them, and of how many windows ahead.
_TAPS = [(1, 0)], [(0, 1), (2, 0)]


def _max_pool_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    index, of_size = saved

    def ahead(x: Array, rows: int, columns: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))[:, rows:, columns:]

    def of_parity(row_taps: list, column_taps: list) -> Array:
        total = jnp.zeros((), gradient.dtype)
        for (i, rows), (j, columns) in itertools.product(row_taps, column_taps):
            chosen = ahead(index, rows, columns) == 3 * i + j
            total = total + jnp.where(chosen, ahead(gradient, rows, columns), 0)
        return total

    total = interleaved([[of_parity(i, j) for j in _TAPS] for i in _TAPS])
    return (total[:, : of_size.shape[0], : of_size.shape[1]],)


max_pool_by_shifts.defvjp(_max_pool_forward, _max_pool_backward)

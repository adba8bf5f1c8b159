"""Layers that several network families share."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError
from lfcc_jax.precision import wide_dtype, widen

# The initializer of most kernels and position embeddings in timm.
trunc_normal = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)


def kernel_init(narrow: bool) -> Any:
    """Returns the initializer of linear layers, with std 0.02 as in timm, or 1 / sqrt(inputs) for narrow networks.

    At width 48, 0.02 is 1/7 of 1 / sqrt(inputs), and training is much slower.
    """
    return nn.initializers.lecun_normal() if narrow else trunc_normal


def uniform_init(fan: int) -> Any:
    """Returns the uniform initializer on ±1 / sqrt(fan), PyTorch's default for kernels and biases."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -(fan**-0.5), fan**-0.5)


def patch_inits(narrow: bool, inputs: int) -> tuple[Any, Any]:
    """Returns the initializers of kernel and bias of a patch embedding: PyTorch's default, as in timm.

    Args:
      narrow: Whether to use 1 / sqrt(inputs) for the kernel and zero for the bias instead.
      inputs: Number of values in a patch.
    """
    return (kernel_init(narrow), nn.initializers.zeros) if narrow else (uniform_init(inputs),) * 2


class DropPath(nn.Module):
    """Stochastic depth: drops a block's branch for random examples, and rescales it for the others.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """

    @nn.compact
    def __call__(self, x: Array, rate: float | Array | None, train: bool) -> Array:
        """Returns `x`, zeroed for random examples if `train`; a rate of None drops nothing."""
        if not train or rate is None:
            return x
        keep = 1.0 - rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the exact GELU, `x (1 + erf(x / sqrt 2)) / 2`, computed in float32 or wider.

    `nn.gelu(approximate=False)` computes `erfc` in the dtype of `x`, which takes several times as long on a GPU.

    Reference: Hendrycks and Gimpel, Gaussian Error Linear Units (GELUs), 2016.
    """
    wide = widen(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def row_major(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x`; on NVIDIA GPUs, it and its gradient are stored with the last axis contiguous.

    The gradient of an array that is added to all images is a sum over the batch, for which XLA makes the batch
    contiguous, and with it the gradients of all layers before it. That costs far more transposes than it saves.
    """
    layout = Layout(major_to_minor=tuple(range(x.ndim)))
    return jax.lax.platform_dependent(
        x, cuda=functools.partial(with_layout_constraint, layouts=layout), default=lambda x: x
    )


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its norm over the map, relative to the mean of those of all channels, with a shortcut.

    Reference: Woo et al., ConvNeXt V2, 2023.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns maps of the shape of `x`."""
        scale, bias = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in ("scale", "bias"))
        wide = x.astype(wide_dtype(self.dtype))
        # The bound keeps the gradient of the root of zero finite.
        norm = jnp.sqrt(jnp.maximum(jnp.square(wide).sum((1, 2), keepdims=True), 1e-30))
        relative = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        scale, bias = (as_last(v, x).astype(wide.dtype) for v in (scale, bias))
        return (wide + scale * (wide * relative) + bias).astype(self.dtype)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them: `width -> hidden -> width`, along the last axis.

    With `response_norm`, a `GlobalResponseNorm` follows the GELU.
    """

    hidden: int
    kernel_init: Any
    dropout: float = 0.0
    dtype: Any = jnp.float32
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns an array of the shape of `x`."""
        width = x.shape[-1]
        if self.hidden < 1:
            raise UserError(f"the hidden width of an MLP must be positive, got {self.hidden}: its ratio is too small")
        x = Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.response_norm:
            x = GlobalResponseNorm(self.dtype, name="grn")(x)
        return Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="fc2")(x)


class LayerScale(nn.Module):
    """A learned scale per channel with a small initial value (Touvron et al., Going Deeper with CaiT, 2021)."""

    initial: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Returns the scaled `x`."""
        scale = self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * as_last(scale, x).astype(self.dtype)


def as_last(vector: Float[Array, " channels"], x: Array) -> Array:
    """Returns a vector reshaped to broadcast along the last axis of `x`."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def product(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], precision: Any = None
) -> Float[Array, "*batch outputs"]:
    """Returns `x @ kernel`.

    On a CPU, all axes but the last are merged, so that this is a product of two matrices. Otherwise, XLA transposes the
    gradient of the result for the kernel's gradient, and computes all that it fuses with it once more in that order:
    DeiT-T then trains at half the speed.
    """

    def at_once(x: Array, kernel: Array) -> Array:
        rows = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=precision)
        return rows.reshape(*x.shape[:-1], kernel.shape[-1])

    standard = functools.partial(jnp.matmul, precision=precision)
    if x.ndim == 2:
        return standard(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=at_once, default=standard)


def _dot_general(x: Array, kernel: Array, _dimensions: Any, precision: Any = None) -> Array:
    return product(x, kernel, precision)


# `nn.Dense` by `product`, for inputs of more than two axes: the same parameters and results.
Dense = functools.partial(nn.Dense, dot_general=_dot_general)


BATCH_NORM_EPSILON = 1e-5


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm, with momentum 0.9 (PyTorch's 0.1).

    Under `jit` on a sharded batch, statistics are those of the global batch. One difference from PyTorch remains: its
    running variance uses the unbiased estimate, larger by a factor of n / (n - 1) for n values.

    Mean and variance come from one pass over the data, as in `nn.BatchNorm`, but around the running mean instead of
    around zero: E[x^2] - E[x]^2 cancels when the mean is large compared with the deviation. That helps once the running
    mean, which is zero in a new network, has come near. Unlike a mean of the batch, it is known beforehand, so XLA can
    sum what a convolution returns while computing it.

    Attributes:
      train: Whether to normalize by the batch's statistics and update the running ones.
      dtype: Dtype of the result. Statistics are float32 or wider.
      zero: Whether the scale is initialized at zero, so that the branch starts without effect.

    Reference: Chan et al., Algorithms for Computing the Sample Variance, 1983 (shifted data).
    """

    train: bool
    dtype: Any = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space inputs"], convolution: Any = None
    ) -> Float[Array, "batch *rows channels"]:
        """Returns `x` with zero mean and unit variance in each channel, scaled and shifted.

        With a `convolution`, `x` is its input, and its output is what is normalized. In evaluation, its kernel is then
        multiplied by the norm's factor and the rest added as a bias, which saves a pass over the map where libraries
        add biases. In bfloat16, both are rounded.
        """
        shape = (x.shape[-1] if convolution is None else convolution.features,)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.zeros if self.zero else nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if convolution is not None and self.train:
            x = convolution(x)
        wide, axes = wide_dtype(self.dtype), tuple(range(x.ndim - 1))
        if self.train:
            shift = jax.lax.stop_gradient(running_mean.value).astype(wide)
            centered = x.astype(wide) - as_last(shift, x)
            mean = centered.mean(axes)
            variance = jnp.maximum(jnp.square(centered).mean(axes) - jnp.square(mean), 0)
            mean = mean + shift
            if not self.is_initializing():
                for running, value in ((running_mean, mean), (running_variance, variance)):
                    running.value = 0.9 * running.value + 0.1 * value.astype(running.value.dtype)
        else:
            mean, variance = (running.value.astype(wide) for running in (running_mean, running_variance))
        factor, bias = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON) * scale.astype(wide), bias.astype(wide)
        if convolution is not None and not self.train:
            return convolution(x, factor, bias - mean * factor)
        return ((x.astype(wide) - as_last(mean, x)) * as_last(factor, x) + as_last(bias, x)).astype(self.dtype)


class LayerNorm(nn.Module):
    """`nn.LayerNorm`, exact where the mean is large compared with the deviation.

    Its one-pass variance E[x^2] - E[x]^2 cancels there; a second pass would read the data once more. A LayerNorm does
    not depend on an offset of its input, so the first channel is subtracted from all of them.

    Attributes:
      epsilon: Added to the variance.
      dtype: Dtype of the result; None for float32 or wider, in which statistics are computed anyway.
    """

    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Returns `x` with zero mean and unit variance over the channels, scaled and shifted."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        x = widen(x)
        x = x - jax.lax.stop_gradient(x[..., :1])
        mean = x.mean(-1, keepdims=True)
        variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0)
        factor = jax.lax.rsqrt(variance + self.epsilon) * as_last(scale, x).astype(x.dtype)
        return ((x - mean) * factor + as_last(bias, x).astype(x.dtype)).astype(self.dtype or x.dtype)

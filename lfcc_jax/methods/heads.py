"""Trainable heads of the methods. They never run in evaluation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.models.convolution import Conv
from lfcc_jax.models.layers import Dense, LayerNorm, trunc_normal
from lfcc_jax.models.vit import Block
from lfcc_jax.precision import widen


def embed(student: Array, teacher: Array, width: int) -> tuple[Array, Array]:
    """Returns trained linear embeddings of both networks' pooled features. Call it inside `nn.compact`."""
    return nn.Dense(width, name="student")(student), nn.Dense(width, name="teacher")(teacher)


class BatchNorm(nn.Module):
    """Batch normalization without running statistics."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `x` with zero mean and unit variance per channel, then scaled and shifted."""
        axes = tuple(range(x.ndim - 1))
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        wide = (1,) * len(axes) + (-1,)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale.reshape(wide) + bias.reshape(wide)


class RunningNorm(nn.Module):
    """Standardizes channels by their running mean and variance, which are no parameters but memory.

    The statistics of step n, this one included, have the momentum max(1 / n, 0.001): those of all steps up to the
    thousandth, then an exponential moving average. UNIC's momentum falls from 1 to 0.001 too.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Returns `x` minus the mean, over the standard deviation, in float32 or wider."""
        x = widen(x)
        shape, axes = (1,) * (x.ndim - 1) + (-1,), tuple(range(x.ndim - 1))
        step = self.variable("memory", "step", lambda: jnp.zeros((), jnp.int32))
        mean = self.variable("memory", "mean", jnp.zeros, (x.shape[-1],))
        variance = self.variable("memory", "variance", jnp.ones, (x.shape[-1],))
        if not self.is_initializing():
            step.value += 1
            momentum = jnp.maximum(1 / step.value, 1e-3).astype(x.dtype)
            shift = x.mean(axes) - mean.value
            mean.value += momentum * shift
            # The variance around the new mean; exact for a momentum of 1 / step.
            old = variance.value + momentum * jnp.square(shift)
            variance.value = (1 - momentum) * old + momentum * x.var(axes)
        return (x - mean.value.reshape(shape)) * jax.lax.rsqrt(variance.value.reshape(shape) + 1e-5)


class ConvolutionExit(nn.Module):
    """Halves a map with separable convolutions, doubling its channels, until its side is `size`; then classifies."""

    size: int
    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        x = widen(x)
        while x.shape[1] > self.size:
            channels = x.shape[-1]
            x = Conv(channels, 3, 2, depthwise=True, kernel_init=nn.initializers.lecun_normal())(x)
            x = nn.relu(BatchNorm()(Dense(2 * channels, use_bias=False)(x)))
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


class AttentionExit(nn.Module):
    """Merges 2x2 patches, doubling the channels, until a map's side is `size`; Transformer blocks; then classifies."""

    size: int
    classes: int
    blocks: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        x = widen(x)
        while x.shape[1] > self.size:
            x = nn.Conv(2 * x.shape[-1], (2, 2), 2, "SAME", use_bias=False)(LayerNorm()(x))
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        for b in range(self.blocks):
            width = tokens.shape[-1]
            tokens = Block(math.gcd(4, width), 4 * width, trunc_normal, name=f"block{b}")(tokens, train=True)
        return nn.Dense(self.classes, name="head")(LayerNorm(name="norm")(tokens).mean(axis=1))

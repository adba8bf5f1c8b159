"""Layers that several network families share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# How most vision networks start kernels and position embeddings, as in timm.
trunc_normal = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)


def kernel_init(narrow: bool) -> Any:
    """Returns the initialiser of linear layers: 0.02 as in timm, or 1 / sqrt(inputs) for narrow networks.

    At a width of 48 the first is a seventh of the second, and the network learns much slower.
    """
    return nn.initializers.lecun_normal() if narrow else trunc_normal


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch of an example with some probability, and rescales what is kept.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """

    @nn.compact
    def __call__(self, x: Array, rate: float | Array | None, train: bool) -> Array:
        """Returns `x` with some examples' branches zeroed if `train`, else `x` itself; a rate of None drops nothing."""
        if not train or rate is None:
            return x
        keep = 1.0 - rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between: `width -> hidden -> width`, along the last axis."""

    hidden: int
    kernel_init: Any
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns an array of the shape of `x`."""
        width = x.shape[-1]
        x = nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="fc2")(x)


class LayerScale(nn.Module):
    """Multiplies each channel by a learned number that starts small (Touvron et al., Going Deeper with CaiT, 2021)."""

    initial: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Returns the scaled `x`."""
        scale = self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * as_last(scale, x).astype(self.dtype)


def as_last(vector: Float[Array, " channels"], x: Array) -> Array:
    """Returns a number for each channel with as many axes as `x`."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


# He initialisation as torch has it, by what a kernel gives.
_he = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# Flax counts a depthwise kernel's outputs over all groups; each of them reads and gives one channel.
_he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def conv(width: int, size: int, stride: int = 1, *, groups: int = 1, dtype: Any, name: str) -> nn.Conv:
    """Returns torch's convolution, without a bias, of `size` x `size` cells.

    Its padding is symmetric; XLA's `SAME` pads strided convolutions on one side.
    """
    padding = [(size // 2, size // 2)] * 2
    init = _he if groups == 1 else _he_depthwise
    return nn.Conv(
        width,
        (size, size),
        stride,
        padding,
        use_bias=False,
        feature_group_count=groups,
        kernel_init=init,
        dtype=dtype,
        name=name,
    )


def batch_norm(train: bool, dtype: Any, name: str, *, zero: bool = False) -> nn.BatchNorm:
    """Returns torch's BatchNorm, with running statistics that keep nine tenths of what they were.

    One difference remains: torch adds to its running variance the unbiased one, of n values n / (n - 1) times as large.

    Args:
      train: whether to normalise with the batch's statistics.
      dtype: of the computation.
      name: of the layer.
      zero: whether the scale starts at zero, and so silences the branch.
    """
    scale = nn.initializers.zeros if zero else nn.initializers.ones
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, scale_init=scale, dtype=dtype, name=name)

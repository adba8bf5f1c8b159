"""Layers that several network families share."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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


_PLAIN_ATTENTION = contextvars.ContextVar("plain attention", default=False)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Makes `attend` compute attention by matrix products on every device, in what is traced inside the context.

    For what cuDNN's attention cannot do: exports, forward-mode and second derivatives, and `jax.vmap` in which not all
    arguments are mapped, or a bias is.
    """
    token = _PLAIN_ATTENTION.set(True)
    try:
        yield
    finally:
        _PLAIN_ATTENTION.reset(token)


def attend(
    query: Float[Array, "*batch queries heads channels"],
    key: Float[Array, "*batch keys heads channels"],
    value: Float[Array, "*batch keys heads channels"],
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "*batch queries heads channels"]:
    """Returns scaled dot-product attention, with logits and softmax in float32 or wider.

    As `jax.nn.dot_product_attention`, but for any number of batch axes, and under strict dtype promotion. On NVIDIA
    GPUs, cuDNN computes half-precision attention of at least 32 tokens, and no logits are stored: forward and backward
    without a bias, forward only with one. See `plain_attention` for what that excludes.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      bias: Added to the logits, `query @ key / sqrt(channels)`, as `[*batch, heads, queries, keys]`; any of the axes
        before `queries` may have length 1.
    """
    (queries, _, channels), keys = query.shape[-3:], key.shape[-3]
    possible = min(queries, keys) >= 32 and query.dtype.itemsize == 2 and channels % 8 == 0 and channels <= 128
    if possible and not _PLAIN_ATTENTION.get():
        odd = bool(queries % 2 or keys % 2)
        if has_cudnn(query.dtype, channels, odd, bias is not None):
            fused = attend_fused if bias is None else _attend_with_bias
            return jax.lax.platform_dependent(query, key, value, bias, cuda=fused, default=_attend)
    return _attend(query, key, value, bias)


def _attend(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    wide = wide_dtype(query.dtype)
    logits = jnp.einsum("...qhc,...khc->...hqk", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias.astype(wide)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)


def attend_fused(
    query: Float[Array, "*batch queries heads channels"],
    key: Float[Array, "*batch keys heads channels"],
    value: Float[Array, "*batch keys heads channels"],
    bias: Float[Array, "..."] | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "*batch queries heads channels"]:
    """Computes `attend` by `jax.nn.dot_product_attention`, with sequences padded to an even length.

    With odd lengths, jax refuses cuDNN's gradient. A bias may not differ along the batch, so batch axes along which it
    does become heads.
    """
    *batch, queries, heads, channels = query.shape
    keys, count = key.shape[-3], len(batch)
    as_heads = [axis for axis in range(count) if bias is not None and bias.shape[axis] > 1]
    kept = [axis for axis in range(count) if axis not in as_heads]
    order = (*kept, count, *as_heads, count + 1, count + 2)
    moved = [batch[axis] for axis in kept], queries, [batch[axis] for axis in as_heads], heads, channels

    def folded(x: Array) -> Array:
        x = jnp.transpose(x, order).reshape(math.prod(moved[0]), x.shape[count], -1, channels)
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    def lengths(x: Array) -> Array:
        # jax requires that `jax.vmap` maps the lengths where it maps the sequences. The comparison is always false.
        first = folded(x)[:, 0, 0, 0]
        return x.shape[count] + (first > first).astype(jnp.int32)

    if bias is not None:
        shape = *(batch[axis] if axis in as_heads else 1 for axis in range(count)), heads, queries, keys
        bias = jnp.broadcast_to(bias, shape).reshape(1, -1, queries, keys).astype(query.dtype)
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, queries % 2), (0, keys % 2)))
    odd = queries % 2 or keys % 2
    given = {"query_seq_lengths": lengths(query), "key_value_seq_lengths": lengths(key)} if odd else {}
    arguments = folded(query), folded(key), folded(value), bias
    result = jax.nn.dot_product_attention(*arguments, implementation=implementation, **given)[:, :queries]
    result = result.reshape(*moved[0], queries, *moved[2], heads, channels)
    return jnp.transpose(result, np.argsort(order))


# The gradient is the plain form's: jax loses the sum over devices, or over mapped examples, in that of a bias.
_attend_with_bias = jax.custom_vjp(lambda *arguments: attend_fused(*arguments))
_attend_with_bias.defvjp(
    lambda *arguments: (attend_fused(*arguments), arguments),
    lambda arguments, gradient: jax.vjp(_attend, *arguments)[1](gradient),
)


@functools.cache
def has_cudnn(dtype: jnp.dtype, channels: int, odd: bool, biased: bool) -> bool:
    """Returns whether cuDNN's attention works on the first device, an NVIDIA GPU. Tries it once for each kind.

    Args:
      dtype: Dtype of the sequences.
      channels: Channels of each head.
      odd: Whether a sequence has an odd length.
      biased: Whether there is a bias.
    """
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return False
    try:
        # Eager, even while a training step is traced.
        with jax.ensure_compile_time_eval(), jax.default_device(device), jax.numpy_dtype_promotion("standard"):
            errors = _errors_of_cudnn(dtype, channels, 49 if odd else 64, biased)
        reason = "" if max(errors) < 0.01 else f"relative errors of {', '.join(f'{e:.4f}' for e in errors)}"
    except Exception as error:  # of jax, XLA or cuDNN, which depend on versions and the device
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if reason:
        print(f"attention without cuDNN ({reason})")
    return not reason


def _errors_of_cudnn(dtype: jnp.dtype, channels: int, tokens: int, biased: bool) -> list[float]:
    """Returns the relative errors of the fused form and, without a bias, of its gradients, against float32."""
    keys = jax.random.split(jax.random.key(0), 5)
    query, key, value, noise = (jax.random.normal(k, (2, 2, tokens, 2, channels), dtype) for k in keys[:4])
    # Small logits and a mean of the values show whether padding is masked.
    arguments = [query / 4, key, value + 1]
    arguments.append(jax.random.normal(keys[4], (1, 2, 2, tokens, tokens)) if biased else None)
    wide = [None if x is None else widen(x) for x in arguments]

    def results(function: Callable, arguments: list) -> list[Array]:
        if biased:
            return [jax.jit(function)(*arguments)]
        *sequences, bias = arguments
        run = jax.jit(lambda *s: jax.vjp(lambda *s: function(*s, bias), *s)[1](noise.astype(s[0].dtype)))
        return [jax.jit(function)(*arguments), *run(*sequences)]

    pairs = zip(results(attend_fused, arguments), results(_attend, wide), strict=True)
    return [float(jnp.linalg.norm((widen(a) - b).ravel()) / jnp.linalg.norm(b.ravel())) for a, b in pairs]


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
        x = nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.response_norm:
            x = GlobalResponseNorm(self.dtype, name="grn")(x)
        return nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="fc2")(x)


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


BATCH_NORM_EPSILON = 1e-5


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm, with momentum 0.9 (PyTorch's 0.1).

    Under `jit` on a sharded batch, statistics are those of the global batch. One difference from PyTorch remains: its
    running variance uses the unbiased estimate, larger by a factor of n / (n - 1) for n values.

    Mean and variance come from one pass over the data, as in `nn.BatchNorm`, but around the mean of the first image
    instead of around zero: E[x^2] - E[x]^2 cancels when the mean is large compared with the deviation.

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
            x = x.astype(wide)
            shift = jax.lax.stop_gradient(x[0].mean(axes[:-1]))
            x = x - as_last(shift, x)
            mean = x.mean(axes)
            variance = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)
            if not self.is_initializing():
                for running, value in ((running_mean, shift + mean), (running_variance, variance)):
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

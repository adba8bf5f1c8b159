"""Scaled dot-product attention: by matrix products, or by cuDNN where that works."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lfcc_jax.losses.numerics import MASKED_LOGIT
from lfcc_jax.precision import wide_dtype, widen

_PLAIN_ATTENTION = contextvars.ContextVar("plain attention", default=False)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Makes attention the same matrix products on every device, in what is traced inside the context.

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
    GPUs, cuDNN computes bfloat16 attention of at least 32 tokens, and no logits are stored: forward and backward
    without a bias, forward only with one. See `plain_attention` for what that excludes.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      bias: Added to the logits, `query @ key / sqrt(channels)`, as `[*batch, heads, queries, keys]`; any of the axes
        before `queries` may have length 1.
    """
    (queries, _, channels), keys = query.shape[-3:], key.shape[-3]
    possible = min(queries, keys) >= 32 and query.dtype == jnp.bfloat16 and channels % 8 == 0 and channels <= 128
    if possible and not _PLAIN_ATTENTION.get():
        odd = bool(queries % 2 or keys % 2) and not _fit_in_pairs(query, key, bias)
        if has_cudnn(query.dtype, channels, odd, bias is not None):
            fused = attend_fused if bias is None else _attend_with_bias
            return jax.lax.platform_dependent(query, key, value, bias, cuda=fused, default=_attend)
    return _attend(query, key, value, bias)


def attend_projected(
    qkv: Float[Array, "*batch tokens projected"],
    heads: int,
    bias: Float[Array, "..."] | None = None,
    rotate: Callable[[Array], Array] | None = None,
) -> Float[Array, "*batch tokens width"]:
    """Returns the self-attention of tokens whose queries, keys and values are one array, as `attend` computes it.

    Args:
      qkv: Queries, keys and values, each of all heads, along the last axis.
      heads: Number of heads; must divide a third of the last axis of `qkv`.
      bias: Added to the logits, `[*batch, heads, tokens, tokens]`; any of the axes before `tokens` may have length 1.
      rotate: Changes queries and keys, `[*batch, tokens, heads, channels]`.
    """
    *batch, tokens, projected = qkv.shape
    query, key, value = jnp.moveaxis(qkv.reshape(*batch, tokens, 3, heads, projected // (3 * heads)), -3, 0)
    if rotate is not None:
        query, key = rotate(query), rotate(key)
    return attend(query, key, value, bias).reshape(*batch, tokens, projected // 3)


def depending_on_tpu(on_tpu: Callable[..., Array], elsewhere: Callable[..., Array], *arguments: Array | None) -> Array:
    """Returns `on_tpu(*arguments)` on a TPU, and `elsewhere(*arguments)` on other devices and in `plain_attention`."""
    if _PLAIN_ATTENTION.get():
        return elsewhere(*arguments)
    return jax.lax.platform_dependent(*arguments, tpu=on_tpu, default=elsewhere)


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
    does become heads. With a bias, two short sequences become one of at most 128 tokens, which takes about as long.
    """
    asked = query.shape
    if _fit_in_pairs(query, key, bias):
        query, key, value, bias = _in_pairs(query, key, value, bias)
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
    return jnp.transpose(result, np.argsort(order)).reshape(asked)


def _fit_in_pairs(query: Array, key: Array, bias: Array | None) -> bool:
    # Not along the first axis, which may be split over devices.
    even = query.ndim > 4 and query.shape[-4] % 2 == 0
    return bias is not None and even and max(query.shape[-3], key.shape[-3]) <= 64


def _in_pairs(query: Array, key: Array, value: Array, bias: Array) -> tuple[Array, ...]:
    """Joins each two neighbors along the last batch axis to a sequence whose halves do not see each other."""

    def joined(x: Array) -> Array:
        return x.reshape(*x.shape[:-4], x.shape[-4] // 2, 2 * x.shape[-3], *x.shape[-2:])

    *axes, count, heads, queries, keys = bias.shape
    bias = jnp.broadcast_to(bias, (*axes, max(count, 2), heads, queries, keys))  # the same for both, if for all
    bias = jnp.moveaxis(bias.reshape(*axes, -1, 2, heads, queries, 1, keys), -5, -4)
    same = np.eye(2, dtype=bool)[:, None, :, None]
    bias = jnp.where(same, bias, MASKED_LOGIT).reshape(*axes, -1, heads, 2 * queries, 2 * keys)
    return joined(query), joined(key), joined(value), bias


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
      odd: Whether a sequence has an odd length, and is not joined with another.
      biased: Whether there is a bias.
    """
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return False
    try:
        # Eager, even while a training step is traced.
        with jax.ensure_compile_time_eval(), jax.default_device(device), jax.numpy_dtype_promotion("standard"):
            errors = _errors_of_cudnn(dtype, channels, odd, biased)
        reason = "" if max(errors) < 0.01 else f"relative errors of {', '.join(f'{e:.4f}' for e in errors)}"
    except Exception as error:  # of jax, XLA or cuDNN, which depend on versions and the device
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if reason:
        print(f"attention without cuDNN ({reason})")
    return not reason


def _errors_of_cudnn(dtype: jnp.dtype, channels: int, odd: bool, biased: bool) -> list[float]:
    """Returns the relative errors of the fused form and, without a bias, of its gradients, against float32."""
    keys = jax.random.split(jax.random.key(0), 5)
    # Windows of Swin are of an odd length, and an even number of them is computed in pairs.
    tokens, windows = 49 if odd or biased else 50, 3 if odd else 2
    query, key, value, noise = (jax.random.normal(k, (2, windows, tokens, 2, channels), dtype) for k in keys[:4])
    # Small logits and a mean of the values show whether padding is masked.
    arguments = [query / 4, key, value + 1]
    arguments.append(jax.random.normal(keys[4], (1, windows, 2, tokens, tokens)) if biased else None)
    wide = [None if x is None else widen(x) for x in arguments]

    def results(function: Callable, arguments: list) -> list[Array]:
        if biased:
            return [jax.jit(function)(*arguments)]
        *sequences, bias = arguments
        run = jax.jit(lambda *s: jax.vjp(lambda *s: function(*s, bias), *s)[1](noise.astype(s[0].dtype)))
        return [jax.jit(function)(*arguments), *run(*sequences)]

    pairs = zip(results(attend_fused, arguments), results(_attend, wide), strict=True)
    return [float(jnp.linalg.norm((widen(a) - b).ravel()) / jnp.linalg.norm(b.ravel())) for a, b in pairs]

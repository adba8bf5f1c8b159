"""Arithmetic shared by the losses, in float32 or wider, with finite gradients everywhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lfcc_jax.precision import widen

# Masked-out logit. Finite: of infinite ones, a difference is NaN, and so is the gradient of a logsumexp of them alone.
MASKED_LOGIT = -1e30
# Vectors whose squared norm is below this count as zero.
_SQUARED_ZERO = 1e-24


def expectation(p: Float[Array, "*batch classes"], x: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    """Returns the sum of `p * x` over the last axis, with zero times infinity counted as zero.

    Neither infinities nor NaNs of `x` reach the sum or its gradient where `p` is zero.

    Args:
      p: Probabilities, or other weights.
      x: Values to average, usually log-probabilities; minus infinity for an impossible class.

    Examples:
      >>> print(expectation(jnp.array([0.5, 0.5, 0.0]), jnp.array([2.0, 4.0, -jnp.inf])))
      3.0
    """
    impossible = p == 0
    return jnp.sum(jnp.where(impossible, 0, p) * jnp.where(impossible, 0, x), axis=-1)


def zero_masked(x: Float[Array, "batch *_"], where: Bool[Array, " batch"]) -> Float[Array, "batch *_"]:
    """Replaces masked examples with zeros, without a gradient.

    Masking their losses is not enough: in the gradient of a shared parameter, a NaN is multiplied by a zero cotangent,
    which is NaN.
    """
    return jnp.where(jnp.expand_dims(where, tuple(range(1, x.ndim))), x, 0)


def unit(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Scales vectors along `axis` to length one, in float32 or wider; zeros stay zeros and get no gradient.

    Examples:
      >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    x = widen(x)
    return x * inverse_root(jnp.sum(jnp.square(x), axis=axis, keepdims=True))


def inverse_root(squared: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the inverse lengths of vectors, given the squares of their lengths; 0, with no gradient, for zeros."""
    nonzero = squared > _SQUARED_ZERO
    return jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, squared, 1)), 0)


def norm(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Returns the lengths of vectors along `axis`, kept with size 1; zeros get no gradient."""
    squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    nonzero = squared > _SQUARED_ZERO
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1)), 0)

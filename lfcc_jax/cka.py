"""Centered kernel alignment (CKA): the similarity of two representations of the same examples."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lfcc_jax.errors import UserError
from lfcc_jax.precision import wide_dtype


def linear_cka(x: Float[Array, "batch *_"], y: Float[Array, "batch *_"]) -> Float[Array, ""]:
    r"""Computes the unbiased linear centered kernel alignment of two representations of the same examples.

    .. math::
      \mathrm{CKA}(x, y) = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x) \, \mathrm{HSIC}(y, y)}}

    It is 1 for representations that are equal up to rotation, shift and scale, and about 0 for unrelated ones. (The
    biased estimator is far from 0 for unrelated ones if there are more features than examples.)

    For a data set in minibatches, sum their `hsic_terms` and pass the sum to `cka_from_terms`.

    Args:
      x: Representation of at least 4 examples: feature maps, pooled features or logits.
      y: Another representation of the same examples. Only its first axis must match that of `x`.

    Returns:
      The alignment, float32. The unbiased estimate can be slightly negative.

    Raises:
      UserError: if `x` and `y` differ in their number of examples, or have fewer than 4.

    Examples:
      >>> x = jnp.arange(24.0).reshape(6, 2, 2, 1) ** 2
      >>> print(linear_cka(x, 5 - 3 * x).round(4))
      1.0

    References:
      Kornblith et al, `Similarity of Neural Network Representations Revisited
      <https://arxiv.org/abs/1905.00414>`_, 2019

      Nguyen et al, `Do Wide and Deep Networks Learn the Same Things? <https://arxiv.org/abs/2010.15327>`_, 2021
    """
    return cka_from_terms(hsic_terms(x, y))


def hsic_terms(
    x: Float[Array, "batch *_"], y: Float[Array, "batch *_"], where: Bool[Array, " batch"] | None = None
) -> Float[Array, "3"]:
    r"""Computes the three unbiased HSIC terms of CKA for one minibatch, to be summed over minibatches.

    With K and L the Gram matrices of the two representations, their diagonals set to zero, and n examples:

    .. math::
      \mathrm{HSIC}(x, y) = \frac{1}{n (n - 3)} \left( \mathrm{tr}(K L) + \frac{1'K1 \; 1'L1}{(n - 1)(n - 2)}
      - \frac{2}{n - 2} 1'KL1 \right)

    Args:
      x: Representation of at least 4 examples.
      y: Another representation of the same examples.
      where: Mask of the examples that count. If fewer than 4 do, the terms are zero.

    Returns:
      HSIC(x, y), HSIC(x, x) and HSIC(y, y), float32.

    Raises:
      UserError: if `x` and `y` differ in their number of examples, or have fewer than 4.

    Examples:
      >>> minibatches = jnp.sin(jnp.arange(80.0)).reshape(2, 8, 5)
      >>> print(cka_from_terms(sum(hsic_terms(x, 2 * x + 1) for x in minibatches)).round(4))
      1.0

    References:
      Song et al, `Feature Selection via Dependence Maximization <https://jmlr.org/papers/v13/song12a.html>`_, 2012
    """
    if x.shape[0] != y.shape[0] or x.shape[0] < 4:
        raise UserError(
            f"`x` and `y` must have the same number of examples, at least 4, got {x.shape[0]} and {y.shape[0]}"
        )
    where = jnp.ones(x.shape[0], bool) if where is None else where
    k, m = _gram(x, where), _gram(y, where)
    n = jnp.sum(where, dtype=k.dtype)
    # Clamp n so that the unused branch stays finite.
    terms = jnp.stack([_hsic(*pair, jnp.maximum(n, 4)) for pair in ((k, m), (k, k), (m, m))])
    return jnp.where(n < 4, 0, terms)


def cka_from_terms(terms: Float[Array, "3"]) -> Float[Array, ""]:
    """Returns the CKA of (summed) `hsic_terms`.

    Args:
      terms: HSIC(x, y), HSIC(x, x) and HSIC(y, y), of one minibatch or summed over many.

    Returns:
      The alignment, float32.

    Examples:
      >>> print(cka_from_terms(jnp.array([1.0, 2.0, 2.0])).round(4))
      0.5
    """
    xy, xx, yy = terms
    return xy / jnp.sqrt(xx * yy)


def _gram(x: Float[Array, "batch *_"], where: Bool[Array, " batch"]) -> Float[Array, "batch batch"]:
    """Returns inner products of centered examples; zero on the diagonal and where either example is masked out."""
    # HSIC does not depend on the mean of the examples; centering only avoids cancellation in its sums.
    x = x.reshape(x.shape[0], -1)
    if x.dtype.itemsize >= 4:
        x = x - jnp.mean(x, axis=0, keepdims=True, where=where[:, None])
    # Products of half-precision maps are exact in float32, so these are centered afterward.
    dtype = wide_dtype(x.dtype)
    both = where[:, None] & where[None, :]
    k = jnp.where(both, jnp.matmul(x, x.T, precision="highest", preferred_element_type=dtype), 0)
    n = jnp.maximum(jnp.sum(where, dtype=dtype), 1)
    row = jnp.sum(k, axis=1, keepdims=True) / n
    k = k - row - row.T + jnp.sum(row) / n
    return jnp.where(both & ~jnp.eye(x.shape[0], dtype=bool), k, 0)


def _hsic(k: Float[Array, "batch batch"], m: Float[Array, "batch batch"], n: Float[Array, ""]) -> Float[Array, ""]:
    trace = jnp.sum(k * m)
    sums = jnp.sum(k) * jnp.sum(m) / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * jnp.sum(jnp.sum(k, axis=0) * jnp.sum(m, axis=1))
    return (trace + sums - rows) / (n * (n - 3))

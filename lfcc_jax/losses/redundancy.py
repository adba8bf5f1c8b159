"""Losses on the correlations between channels, which are statistics of the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lfcc_jax.errors import UserError
from lfcc_jax.losses.numerics import norm, zero_masked
from lfcc_jax.precision import widen


def rsd(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch dim"],
    *,
    kappa: float = 0.01,
    groups: int = 1,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    r"""Computes redundancy suppression: each channel must correlate with its own of the teacher, and with no other.

    .. math::
      \sum_i (R_{ii} - 1)^2 + \kappa \sum_{i \neq j} R_{ij}^2, \qquad
      R = \frac{1}{B} N(f^t)' N(f^s), \qquad N(f) = \frac{f - \bar f}{\sigma + 10^{-5}}

    with the mean :math:`\bar f` and the standard deviation :math:`\sigma` of each channel over the batch. It is a sum
    over channels, so at the start of training it is about their number. The value depends on the size of the batch:
    independent channels alone cost :math:`\kappa D^2 / B`. A constant channel of the teacher costs 1 and has no
    gradient. No gradient reaches the teacher.

    Args:
      student: Vectors of the student, projected to the teacher's channels, any floating dtype.
      teacher: Vectors of the teacher.
      kappa: Weight :math:`\kappa` of the correlations between different channels.
      groups: Number of equal, contiguous parts of the batch. Statistics are those of each part, and the loss is the
        mean over parts. The authors' are those of each GPU's 128 images.
      where: Mask of the examples that count. Masked examples may contain NaN; parts without any example do not count.

    Returns:
      A scalar, float32 or wider: a statistic of the batch.

    Raises:
      UserError: if `groups` does not divide the batch.

    Examples:
      >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
      >>> print(rsd(5 * x + 2, x).round(3), rsd(-x, x).round(3))  # R is the identity, or minus it
      0.0 8.0

    References:
      Zhang et al., `Cross-Architecture Distillation Made Simple with Redundancy Suppression
      <https://arxiv.org/abs/2507.21844>`_, 2025 (weight 0.1).
    """
    batch, dim = student.shape
    if groups < 1 or batch % groups:
        raise UserError(f"`groups` must be positive and divide the batch of {batch}, got {groups}")
    student, teacher = widen(student), widen(jax.lax.stop_gradient(teacher))
    counted = jnp.ones(batch, bool) if where is None else where
    if where is not None:
        student, teacher = zero_masked(student, where), zero_masked(teacher, where)
    own = jnp.eye(dim, dtype=student.dtype)
    weights = own + kappa * (1 - own)

    def of_part(ours: Array, theirs: Array, counted: Array) -> Array:
        count = jnp.maximum(jnp.sum(counted, dtype=ours.dtype), 1)

        def standardized(x: Array) -> Array:
            mean = jnp.sum(x, axis=0, keepdims=True) / count
            centered = jnp.where(counted[:, None], x - mean, 0)
            return centered / (norm(centered, axis=0) / jnp.sqrt(count) + 1e-5)

        correlations = jnp.matmul(standardized(theirs).T, standardized(ours), precision="highest") / count
        return jnp.sum(weights * jnp.square(correlations - own))

    parts = [x.reshape(groups, -1, *x.shape[1:]) for x in (student, teacher, counted)]
    values = jax.vmap(of_part)(*parts)
    nonempty = jnp.any(parts[2], axis=1)
    return jnp.sum(jnp.where(nonempty, values, 0)) / jnp.maximum(jnp.sum(nonempty, dtype=values.dtype), 1)

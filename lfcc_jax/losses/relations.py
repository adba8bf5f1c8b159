"""Losses that compare relations between the examples of a batch.

Features are flattened per example; their sizes may differ. Relations are those of the global batch under `jax.jit`, on
any number of devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.losses.numerics import norm, unit
from lfcc_jax.precision import widen


def sp(student: Float[Array, "batch *_"], teacher: Float[Array, "batch *_"]) -> Float[Array, " batch"]:
    r"""Computes similarity preservation, per example: the error of its similarities to the whole batch.

    .. math::
      \frac{1}{B} \sum_j \Big(\frac{G^s_{ij}}{|G^s_{i\cdot}|} - \frac{G^t_{ij}}{|G^t_{i\cdot}|}\Big)^2, \qquad
      G = f f'

    No gradient reaches the teacher.

    Args:
      student: Features of the student, usually the last maps, any floating dtype.
      teacher: Features of the teacher.

    Returns:
      The loss of each example, float32 or wider; zero where the similarities agree.

    Examples:
      >>> x = jnp.sin(jnp.arange(24.0)).reshape(4, 6)
      >>> print(sp(x[:, ::-1], 3 * x).round(4))  # a rotation and a scale
      [0. 0. 0. 0.]

    References:
      Tung and Mori, `Similarity-Preserving Knowledge Distillation <https://arxiv.org/abs/1907.09682>`_, 2019 (weight
      3000).
    """

    def similarities(x: Array) -> Array:
        return unit(jnp.matmul(x, x.T, precision="highest"))

    student, teacher = _flat(student, teacher)
    return jnp.mean(jnp.square(similarities(student) - similarities(teacher)), axis=1)


def cc(student: Float[Array, "batch dim"], teacher: Float[Array, "batch dim"]) -> Float[Array, ""]:
    r"""Computes the correlation loss of the published benchmarks: products of the errors of neighbors in the batch.

    .. math::
      \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_c |s_{ic} - t_{ic}| \, |s_{i+1,c} - t_{i+1,c}|

    This is the only loss that depends on the order of the batch. It is what published tables list as CC, although it is
    not the Gaussian-kernel loss of the paper. The teacher's embedding is trained like the student's, so a gradient
    reaches `teacher`: stop it before the embedding.

    Args:
      student: Embeddings of the student, any floating dtype.
      teacher: Embeddings of the teacher, in the same space.

    Returns:
      A scalar, float32 or wider: a statistic of the batch; zero where the embeddings agree.

    Examples:
      >>> print(cc(jnp.ones((4, 3)), jnp.zeros((4, 3))))
      3.0

    References:
      Peng et al., `Correlation Congruence for Knowledge Distillation <https://arxiv.org/abs/1904.01802>`_, 2019 (weight
      0.02, embeddings of 128).
    """
    errors = jnp.abs(widen(student) - widen(teacher))
    return jnp.sum(errors[:-1] * errors[1:]) / max(errors.shape[0] - 1, 1)


def rkd(
    student: Float[Array, "batch *_"],
    teacher: Float[Array, "batch *_"],
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Float[Array, " batch"]:
    r"""Computes relational distillation, per example: distances to the other examples, and angles between them.

    .. math::
      \frac{w_d}{B} \sum_j h\Big(\frac{d^s_{ij}}{\bar d^s} - \frac{d^t_{ij}}{\bar d^t}\Big)
      + \frac{w_a}{B^2} \sum_{jk} h(\cos\angle^s_{jik} - \cos\angle^t_{jik})

    with :math:`d_{ij} = |f_i - f_j|`, its mean over pairs of different examples :math:`\bar d`, and the Huber
    loss :math:`h(x) = x^2 / 2` up to 1, :math:`|x| - 1/2` beyond. No gradient reaches the teacher.

    Memory grows with batch^3 for the angles and batch^2 x dim for the differences: use it on pooled features.

    Args:
      student: Features of the student, any floating dtype.
      teacher: Features of the teacher.
      distance_weight: Weight :math:`w_d` of the distances.
      angle_weight: Weight :math:`w_a` of the angles.

    Returns:
      The loss of each example, float32 or wider; zero where distances (up to scale) and angles agree.

    Examples:
      >>> x = jnp.sin(jnp.arange(24.0)).reshape(4, 6)
      >>> print(rkd(5 - 3 * x, x).round(4))  # a shift, a reflection and a scale
      [0. 0. 0. 0.]

    References:
      Park et al., `Relational Knowledge Distillation <https://arxiv.org/abs/1904.05068>`_, 2019.
    """

    def relations(x: Array) -> tuple[Array, Array]:
        batch = x.shape[0]
        # Not |a|^2 + |b|^2 - 2 ab, which cancels in float32 where examples are close.
        differences = x[None, :, :] - x[:, None, :]
        others = ~jnp.eye(batch, dtype=bool)
        squared = jnp.maximum(jnp.sum(jnp.square(differences), axis=2), 1e-12)
        distances = jnp.where(others, jnp.sqrt(squared), 0)
        directions = unit(differences)
        angles = jnp.einsum("ijd,ikd->ijk", directions, directions, precision="highest")
        mean = jnp.sum(distances) / (batch * (batch - 1)) if batch > 1 else 1.0
        return distances / mean, angles

    def huber(x: Array) -> Array:
        size = jnp.abs(x)
        return jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)

    student, teacher = _flat(student, teacher)
    (distances, angles), (distances_t, angles_t) = relations(student), relations(teacher)
    distance_term = jnp.mean(huber(distances - distances_t), axis=1)
    angle_term = jnp.mean(huber(angles - angles_t), axis=(1, 2))
    return distance_weight * distance_term + angle_weight * angle_term


def pkt(student: Float[Array, "batch *_"], teacher: Float[Array, "batch *_"]) -> Float[Array, " batch"]:
    r"""Computes probabilistic knowledge transfer, per example: the divergence of its neighborhood distributions.

    .. math::
      \frac{1}{B} \sum_j P^t_{ij} \log \frac{P^t_{ij} + \epsilon}{P^s_{ij} + \epsilon}, \qquad
      P_{ij} = \frac{1 + \cos(f_i, f_j)}{\sum_k (1 + \cos(f_i, f_k))}

    with :math:`\epsilon = 10^{-7}`, which is also added to the norms. No gradient reaches the teacher.

    Args:
      student: Features of the student, any floating dtype.
      teacher: Features of the teacher.

    Returns:
      The loss of each example, float32 or wider; zero where the cosine similarities agree.

    Examples:
      >>> x = jnp.sin(jnp.arange(24.0)).reshape(4, 6)
      >>> print(abs(pkt(2 * x, x).round(4)))
      [0. 0. 0. 0.]

    References:
      Passalis and Tefas, `Learning Deep Representations with Probabilistic Knowledge Transfer
      <https://arxiv.org/abs/1803.10837>`_, 2018 (weight 30000).
    """
    epsilon = 1e-7

    def probabilities(x: Array) -> Array:
        x = x / (norm(x) + epsilon)
        affinities = (jnp.matmul(x, x.T, precision="highest") + 1) / 2
        return affinities / jnp.sum(affinities, axis=1, keepdims=True)

    ours, theirs = map(probabilities, _flat(student, teacher))
    return jnp.mean(theirs * (jnp.log(theirs + epsilon) - jnp.log(ours + epsilon)), axis=1)


def _flat(student: Float[Array, "batch *_"], teacher: Float[Array, "batch *_"]) -> tuple[Array, Array]:
    teacher = jax.lax.stop_gradient(teacher)
    return tuple(widen(x).reshape(x.shape[0], -1) for x in (student, teacher))

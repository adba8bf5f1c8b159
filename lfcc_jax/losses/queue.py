"""Similarities, as distributions: of an image to a queue of the teacher's vectors, and between positions of a map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lfcc_jax.losses.logits import kd
from lfcc_jax.losses.numerics import MASKED_LOGIT, unit
from lfcc_jax.precision import widen


def queue_similarity(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch dim"],
    queue: Float[Array, "size dim"],
    *,
    temperature: float = 0.07,
    where: Bool[Array, " size"] | None = None,
) -> Float[Array, " batch"]:
    r"""Computes the divergence between both networks' similarities to a queue of teacher vectors, per example.

    .. math::
      \mathrm{KL}\big(\mathrm{softmax}(Q \hat f^t / \tau) \,\|\, \mathrm{softmax}(Q \hat f^s / \tau)\big), \qquad
      \hat f = f / |f|

    No gradient reaches the teacher or the queue.

    Args:
      student: Vectors of the student, projected to the teacher's channels, any floating dtype.
      teacher: Vectors of the teacher.
      queue: Vectors :math:`Q` of the teacher for other images, of length 1.
      temperature: Temperature :math:`\tau`, positive.
      where: Mask of the entries of the queue that count. In the authors' code all do: those that are not filled yet are
        zeros, with similarity 0 to everything.

    Returns:
      The loss of each example in nats, float32 or wider; zero where the similarities agree.

    Examples:
      >>> queue = jnp.eye(4)
      >>> teacher = jnp.array([[1.0, 0.0, 0.0, 0.0]])
      >>> print(queue_similarity(2 * teacher, teacher, queue))
      [0.]
      >>> print(queue_similarity(-teacher, teacher, queue, temperature=1.0).round(4))
      [0.4213]

    References:
      `LightlyTrain <https://github.com/lightly-ai/lightly-train>`_, distillation, 2026 (weight 1, K of 16 to 8192
      depending on the size of the data set).

    .. seealso::
      :func:`lfcc_jax.losses.token_similarity` for its second part.
    """
    queue = jax.lax.stop_gradient(queue)

    def logits(x: Array) -> Array:
        x = unit(x)
        similarities = jnp.matmul(x, queue.T.astype(x.dtype), precision="highest") / temperature
        return similarities if where is None else jnp.where(where[None, :], similarities, MASKED_LOGIT)

    return kd(logits(student), logits(teacher))


def token_similarity(
    student: Float[Array, "batch _ _ dim"], teacher: Float[Array, "batch _ _ dim"], *, temperature: float = 0.07
) -> Float[Array, " batch"]:
    r"""Computes the divergence between both networks' similarities of the positions of a map, per example.

    With the vectors :math:`\hat f_m` of M positions, of length 1:

    .. math::
      \frac{1}{M} \sum_m \mathrm{KL}\big(\mathrm{softmax}_n(\hat f^t_m \cdot \hat f^t_n / \tau) \,\|\,
      \mathrm{softmax}_n(\hat f^s_m \cdot \hat f^s_n / \tau)\big)

    Maps of the student of another size are interpolated linearly to the teacher's, without antialiasing. Memory grows
    with batch x M^2. No gradient reaches the teacher.

    Args:
      student: Feature maps of the student, any floating dtype.
      teacher: Feature maps of the teacher.
      temperature: Temperature :math:`\tau`, positive.

    Returns:
      The loss of each example in nats, float32 or wider; zero where the similarities agree, as for maps of 1 x 1.

    Examples:
      >>> x = jnp.sin(jnp.arange(96.0)).reshape(2, 4, 4, 3)
      >>> print(abs(token_similarity(x[..., ::-1], 2 * x).round(4)))  # a rotation and a scale
      [0. 0.]

    References:
      `LightlyTrain <https://github.com/lightly-ai/lightly-train>`_, distillation, 2026 (weight 1).
    """
    student, teacher = widen(student), widen(teacher)
    if student.shape[1:3] != teacher.shape[1:3]:
        size = (student.shape[0], *teacher.shape[1:3], student.shape[3])
        student = jax.image.resize(student, size, "linear", antialias=False)

    def logits(x: Array) -> Array:
        x = unit(x.reshape(x.shape[0], -1, x.shape[3]))
        return jnp.einsum("bmd,bnd->bmn", x, x, precision="highest") / temperature

    return jnp.mean(kd(logits(student), logits(teacher)), axis=1)

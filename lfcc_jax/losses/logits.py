"""Losses on logits: cross-entropy with labels, and the divergence from a teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, label_smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    r"""Computes the softmax cross-entropy with integer labels, per example, in float32.

    .. math::
      -\sum_c q_c \log \mathrm{softmax}(z)_c, \qquad q_c = (1 - \epsilon)\,[c = y] + \epsilon / C

    Args:
      logits: unnormalised log-probabilities :math:`z`, `[..., classes]`, any floating dtype.
      labels: the true class :math:`y` of each example, in `[0, classes)`.
      label_smoothing: :math:`\epsilon`, the probability spread evenly over all classes, in [0, 1).

    Returns:
      The loss of each example in nats, `[...]`, float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))
      Array([1.3862944], dtype=float32)

    References:
      Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_, 2016 (smoothing).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    return -(1 - label_smoothing) * of_label - label_smoothing * log_p.mean(axis=-1)


def kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    r"""Computes the divergence of the student's softened prediction from the teacher's, per example, in float32.

    .. math::
      T^2\, \mathrm{KL}\big(\mathrm{softmax}(z^t / T) \,\|\, \mathrm{softmax}(z^s / T)\big)

    The factor :math:`T^2` keeps the gradient's size as the temperature changes. No gradient reaches the teacher.

    Args:
      student_logits: :math:`z^s`, `[..., classes]`, any floating dtype.
      teacher_logits: :math:`z^t`, of the same shape.
      temperature: :math:`T`, above zero.

    Returns:
      The loss of each example in nats, `[...]`, float32; zero where both predictions agree.

    Examples:
      >>> import jax.numpy as jnp
      >>> kd(jnp.array([[1.0, 2.0]]), jnp.array([[6.0, 7.0]]))  # a shift of the logits changes nothing
      Array([0.], dtype=float32)

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, 2015.
    """
    log_p_student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    log_p_teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
    p_teacher = jnp.exp(log_p_teacher)
    return temperature**2 * jnp.sum(p_teacher * (log_p_teacher - log_p_student), axis=-1)

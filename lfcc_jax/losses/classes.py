"""Losses on logits that treat classes unequally: the true one apart (DKD, OFA), or each against the batch (DIST).

As in `lfcc_jax.losses.logits`, a logit of minus infinity masks its class.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lfcc_jax.losses.numerics import expectation, norm, widen

# Masked-out logit. Finite, because the difference of two infinite ones is nan.
_NEVER = -1e30
# The least standard deviation of probabilities, over their mean, by which a correlation divides.
_LEAST_SPREAD = 1e-2


def dkd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    alpha: float = 1.0,
    beta: float | Float[Array, "*batch"] = 8.0,
    temperature: float = 4.0,
) -> Float[Array, "*batch"]:
    r"""Computes decoupled knowledge distillation, per example: the true class against the others, and these alone.

    .. math::
      T^2 \big[\alpha\, \mathrm{KL}(b^t \,\|\, b^s) + \beta\, \mathrm{KL}(\hat p^t \,\|\, \hat p^s)\big]

    with p = softmax(z / T), :math:`b = (p_y, 1 - p_y)`, and :math:`\hat p` the softmax of z / T without class y. `kd`
    is the same with :math:`\alpha = 1` and :math:`\beta = 1 - p^t_y`. No gradient reaches the teacher.

    Args:
      student_logits: :math:`z^s`, `[..., classes]`, any floating dtype.
      teacher_logits: :math:`z^t`, of the same shape.
      labels: the true class y of each example.
      alpha: weight of the true class's term.
      beta: weight of the other classes' term. Defaults are those for CIFAR-100 (2 and 6 for some pairs, with a warm-up
        of the whole loss over 20 epochs); on ImageNet 0.5 or 2 with temperature 1.
      temperature: T, above zero.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider; zero where both predictions agree.

    Examples:
      >>> teacher = jnp.array([[6.0, 7.0, 9.0]])
      >>> print(dkd(teacher + 5, teacher, jnp.array([2])).round(4))
      [0.]

    References:
      Zhao et al., `Decoupled Knowledge Distillation <https://arxiv.org/abs/2203.08679>`_, 2022.
    """
    is_true = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)

    def split(logits: Array) -> tuple[Array, Array, Array]:
        """Returns log p_y, log(1 - p_y) and log of p without y."""
        logits = widen(logits) / temperature
        others = jnp.where(is_true, _NEVER, logits)
        of_others = jax.nn.logsumexp(others, axis=-1)
        of_true = jnp.sum(jnp.where(is_true, logits, 0), axis=-1)
        total = jnp.logaddexp(of_true, of_others)
        return of_true - total, of_others - total, others - of_others[..., None]

    true_s, not_s, others_s = split(student_logits)
    true_t, not_t, others_t = split(jax.lax.stop_gradient(teacher_logits))
    binary_s, binary_t = jnp.stack([true_s, not_s], axis=-1), jnp.stack([true_t, not_t], axis=-1)
    target_term = expectation(jnp.exp(binary_t), binary_t - binary_s)
    others_term = expectation(jnp.where(is_true, 0, jnp.exp(others_t)), others_t - others_s)
    return temperature**2 * (alpha * target_term + beta * others_term)


def ofa(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    exponent: float = 1.0,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    r"""Computes the loss of one-for-all distillation, per example: cross-entropy with an enhanced true class.

    .. math::
      -\sum_c \big[(p^t_c + [c = y])^\gamma - [c = y]\big] \log p^s_c, \qquad p = \mathrm{softmax}(z / T)

    With :math:`\gamma = 1` it is the cross-entropy with the teacher's prediction: `kd` but for a constant. There is no
    factor :math:`T^2`, as in the authors' code. No gradient reaches the teacher. It is not zero where both agree.

    Args:
      student_logits: :math:`z^s`, `[..., classes]`, any floating dtype; of the network or of an exit branch.
      teacher_logits: :math:`z^t`, of the same shape.
      labels: the true class y of each example.
      exponent: :math:`\gamma`, at least 1; the authors use 1 on CIFAR-100, 1 to 1.5 on ImageNet.
      temperature: T, above zero.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider.

    Examples:
      >>> print(ofa(jnp.zeros((1, 4)), jnp.zeros((1, 4)), jnp.array([0])).round(4))  # log 4
      [1.3863]

    References:
      Hao et al., `One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation
      <https://arxiv.org/abs/2310.19444>`_, 2023.
    """
    log_p = jax.nn.log_softmax(widen(student_logits) / temperature)
    p_teacher = jax.nn.softmax(widen(jax.lax.stop_gradient(teacher_logits)) / temperature)
    is_true = jax.nn.one_hot(labels, log_p.shape[-1], dtype=log_p.dtype)
    return -expectation((p_teacher + is_true) ** exponent - is_true, log_p)


def dist(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Array, ""]:
    r"""Computes DIST: how far both networks' predictions are from being correlated, within examples and within classes.

    .. math::
      T^2 \Big[\beta \big(1 - \tfrac{1}{B} \sum_i \rho(p^s_{i\cdot}, p^t_{i\cdot})\big)
      + \gamma \big(1 - \tfrac{1}{C} \sum_c \rho(p^s_{\cdot c}, p^t_{\cdot c})\big)\Big], \qquad
      \rho(a, b) = \frac{(a - \bar a) \cdot (b - \bar b)}{|a - \bar a|\, |b - \bar b| + 10^{-8}}

    with p = softmax(z / T). No gradient reaches the teacher. As in the authors' code, what does not vary has
    correlation 0, also with itself: a class that nobody predicts counts as a disagreement, and so does a class that is
    masked in all examples, which costs :math:`\gamma / C`. Unlike there, the student's
    :math:`|a - \bar a|` is at least that of a standard deviation of 1 % of the mean: otherwise the gradient grows to
    1e7 where a classifier starts from zeros, as in MLP-Mixer and ResMLP.

    Args:
      student_logits: :math:`z^s`, any floating dtype.
      teacher_logits: :math:`z^t`, of the same shape.
      beta: weight of the relation between the classes of an example.
      gamma: weight of the relation between the examples of a class.
      temperature: T, above zero; the authors use 4 on CIFAR-100 and 1 on ImageNet, and a weight of 2 for all of it.

    Returns:
      A scalar, float32 or wider: a statistic of the batch.

    Examples:
      >>> logits = jnp.array([[0.0, 1.0, 2.0], [3.0, 1.0, 1.0]])
      >>> print(abs(dist(logits, logits).round(4)))
      0.0

    References:
      Huang et al., `Knowledge Distillation from A Stronger Teacher <https://arxiv.org/abs/2205.10536>`_, 2022.
    """
    ours = jax.nn.softmax(widen(student_logits) / temperature)
    theirs = jax.nn.softmax(widen(jax.lax.stop_gradient(teacher_logits)) / temperature)
    within_examples = 1 - _correlation(ours, theirs).mean()
    within_classes = 1 - _correlation(ours.T, theirs.T).mean()
    return temperature**2 * (beta * within_examples + gamma * within_classes)


def _correlation(ours: Float[Array, "rows columns"], theirs: Float[Array, "rows columns"]) -> Float[Array, "rows 1"]:
    mean = ours.mean(axis=1, keepdims=True)
    a, b = ours - mean, theirs - theirs.mean(axis=1, keepdims=True)
    least = _LEAST_SPREAD * ours.shape[1] ** 0.5 * mean
    return jnp.sum(a * b, axis=1, keepdims=True) / (jnp.maximum(norm(a), least) * norm(b) + 1e-8)

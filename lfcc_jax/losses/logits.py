"""Losses on logits: cross-entropy with labels, and divergences from a teacher.

A logit of minus infinity masks its class: the class has probability zero, and zero times infinity counts as zero. A
loss is infinite if the student masks a class to which the target assigns a positive probability, and finite otherwise;
gradients are finite in both cases. At least one logit of each example must be finite.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lfcc_jax.losses.numerics import MASKED_LOGIT, expectation, norm
from lfcc_jax.precision import widen

# Lower bound on the standard deviation of logits.
_MIN_STD = 1e-2
# Lower bound on the standard deviation of probabilities, relative to their mean.
_MIN_RELATIVE_STD = 1e-2


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "*batch"]:
    r"""Computes the softmax cross-entropy with labels, or with probabilities of classes, per example.

    .. math::
      -\sum_c q_c \log \mathrm{softmax}(z)_c, \qquad q_c = (1 - \epsilon)\,y_c + \epsilon / C

    Args:
      logits: Unnormalized log-probabilities :math:`z`, `[..., classes]`, any floating dtype.
      labels: True class of each example, in `[0, classes)`; or probabilities :math:`y`, for example of mixed images.
      label_smoothing: Probability :math:`\epsilon` that is spread evenly over all classes, in [0, 1). This includes
        masked classes, so the loss of an example with a masked class becomes infinite.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider.

    Examples:
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))
      Array([1.3862944], dtype=float32)

    References:
      Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_, 2016 (smoothing).
    """
    log_p = jax.nn.log_softmax(widen(logits))
    if jnp.issubdtype(labels.dtype, jnp.integer):
        of_label = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    else:
        of_label = expectation(labels, log_p)
    if not label_smoothing:  # 0 times the mean is NaN where a class is masked
        return -of_label
    return -(1 - label_smoothing) * of_label - label_smoothing * log_p.mean(axis=-1)


def kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    r"""Computes the divergence of the student's softened prediction from the teacher's, per example.

    .. math::
      T^2\, \mathrm{KL}\big(\mathrm{softmax}(z^t / T) \,\|\, \mathrm{softmax}(z^s / T)\big)

    The factor :math:`T^2` keeps the gradient's scale independent of the temperature. No gradient reaches the teacher.

    Args:
      student_logits: Logits :math:`z^s`, `[..., classes]`, any floating dtype.
      teacher_logits: Logits :math:`z^t`, with the same shape.
      temperature: Temperature T, positive. 4 is usual on CIFAR-100, 1 on ImageNet.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider; zero where the predictions agree.

    Examples:
      >>> kd(jnp.array([[1.0, 2.0]]), jnp.array([[6.0, 7.0]]))  # a shift of the logits changes nothing
      Array([0.], dtype=float32)

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, 2015.
    """
    log_p_student = jax.nn.log_softmax(widen(student_logits) / temperature)
    log_p_teacher = jax.nn.log_softmax(widen(jax.lax.stop_gradient(teacher_logits)) / temperature)
    return temperature**2 * _divergence(log_p_teacher, log_p_student)


def standardize_logits(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    r"""Computes the z-scores of each example's logits, so that `kd` compares their shape and not their scale.

    .. math::
      \hat z_c = \frac{z_c - \bar z}{\max(\sigma, 0.01) + 10^{-7}}, \qquad
      \sigma^2 = \frac{1}{C - 1} \sum_c (z_c - \bar z)^2

    The authors' code has no lower bound of 0.01. Its gradient grows with the inverse of the standard deviation: to 1e7
    for a classifier that is initialized to zeros, as in MLP-Mixer and ResMLP.

    Args:
      logits: Logits :math:`z` of either network, `[..., classes]`, any floating dtype.

    Returns:
      Logits with mean 0 and standard deviation 1 (less if that of `logits` is below 0.01), float32 or wider. Masked
      classes stay masked and do not count in the mean and the standard deviation.

    Examples:
      >>> print(standardize_logits(jnp.array([[2.0, 4.0, 6.0]])))
      [[-1.  0.  1.]]
      >>> student, teacher = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[3.0, 6.0, 12.0]])
      >>> print(abs(kd(standardize_logits(student), standardize_logits(teacher), temperature=2.0)).round(4))
      [0.]

    References:
      Sun et al., `Logit Standardization in Knowledge Distillation <https://arxiv.org/abs/2403.01427>`_, 2024 (with KD:
      temperature 2, weight 9, and weight 0.1 for the cross-entropy).
    """
    logits = widen(logits)
    masked = jnp.isneginf(logits)
    centered = logits - jnp.mean(logits, axis=-1, keepdims=True, where=~masked)
    finite = jnp.where(masked, 0, centered)
    degrees = jnp.sum(~masked, axis=-1, keepdims=True, dtype=logits.dtype) - 1
    deviation = norm(finite) / jnp.sqrt(jnp.maximum(degrees, 1))
    return jnp.where(masked, -jnp.inf, finite / (jnp.maximum(deviation, _MIN_STD) + 1e-7))


def ttm(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    exponent: float = 0.2,
) -> Float[Array, "*batch"]:
    r"""Computes the divergence of the student's prediction from the teacher's flattened prediction, per example.

    Transformed teacher matching: only the teacher has a temperature, as an exponent of its probabilities.

    .. math::
      \mathrm{KL}(q \,\|\, p^s), \qquad q_c = (p^t_c)^\gamma / U, \qquad U = \sum_c (p^t_c)^\gamma

    No gradient reaches the teacher.

    Args:
      student_logits: Logits `[..., classes]`, any floating dtype; :math:`p^s` is their softmax.
      teacher_logits: Logits with the same shape; :math:`p^t` is their softmax.
      exponent: Exponent :math:`\gamma`, positive; the authors use 0.1 to 0.2.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider; zero where :math:`p^s` equals :math:`q`.

    Examples:
      >>> print(abs(ttm(jnp.array([[1.0, 2.0]]), jnp.array([[5.0, 10.0]]), exponent=0.2).round(4)))
      [0.]

    References:
      Zheng and Yang, `Knowledge Distillation Based on Transformed Teacher Matching <https://arxiv.org/abs/2402.11148>`_,
      2024.
    """
    log_q, _ = _flattened(teacher_logits, exponent)
    return _divergence(log_q, jax.nn.log_softmax(widen(student_logits)))


def wttm(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    exponent: float = 0.2,
) -> Float[Array, "*batch"]:
    r"""Computes `ttm` weighted by the teacher's uncertainty: :math:`U \, \mathrm{KL}(q \,\|\, p^s)`, per example.

    The weight U, between 1 (certain) and :math:`C^{1 - \gamma}`, is not normalized over the batch.

    Args:
      student_logits: As in `ttm`.
      teacher_logits: As in `ttm`.
      exponent: As in `ttm`.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider.

    Examples:
      >>> print(wttm(jnp.array([[0.0, 3.0]]), jnp.zeros((1, 2)), exponent=0.5).round(4))  # sqrt(2) times ttm
      [1.2098]

    References:
      Zheng and Yang, `Knowledge Distillation Based on Transformed Teacher Matching <https://arxiv.org/abs/2402.11148>`_,
      2024.
    """
    log_q, log_sum = _flattened(teacher_logits, exponent)
    return jnp.exp(log_sum) * _divergence(log_q, jax.nn.log_softmax(widen(student_logits)))


def dkd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    alpha: float = 1.0,
    beta: float | Float[Array, "*batch"] = 8.0,
    temperature: float = 4.0,
) -> Float[Array, "*batch"]:
    r"""Computes decoupled knowledge distillation, per example: true class against the rest, and the rest by itself.

    .. math::
      T^2 \big[\alpha\, \mathrm{KL}(b^t \,\|\, b^s) + \beta\, \mathrm{KL}(\hat p^t \,\|\, \hat p^s)\big]

    with p = softmax(z / T), :math:`b = (p_y, 1 - p_y)`, and :math:`\hat p` the softmax of z / T without class y. `kd`
    is the special case :math:`\alpha = 1` and :math:`\beta = 1 - p^t_y`. No gradient reaches the teacher.

    Args:
      student_logits: Logits :math:`z^s`, `[..., classes]`, any floating dtype.
      teacher_logits: Logits :math:`z^t`, with the same shape.
      labels: True class y of each example.
      alpha: Weight of the true class's term.
      beta: Weight of the other classes' term. The default is for CIFAR-100, where the authors use 2 or 6 for some
        pairs; on ImageNet they use 0.5 or 2 with temperature 1.
      temperature: Temperature T, positive.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider; zero where the predictions agree.

    Examples:
      >>> teacher = jnp.array([[6.0, 7.0, 9.0]])
      >>> print(dkd(teacher + 5, teacher, jnp.array([2])).round(4))
      [0.]

    References:
      Zhao et al., `Decoupled Knowledge Distillation <https://arxiv.org/abs/2203.08679>`_, 2022 (on CIFAR-100 the weight
      increases over 20 epochs).
    """
    is_true = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)

    def split(logits: Array) -> tuple[Array, Array, Array]:
        """Returns log p_y, log(1 - p_y) and log of p without y."""
        logits = widen(logits) / temperature
        others = jnp.where(is_true, MASKED_LOGIT, logits)
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


def rld(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    alpha_temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    r"""Computes refined logit distillation, per example: the teacher's confidence, and its less likely classes.

    .. math::
      \alpha\, T_\alpha^2\, \mathrm{KL}(b^t \,\|\, b^s) + \beta\, T^2\, \mathrm{KL}(\hat p^t \,\|\, \hat p^s)

    with :math:`b^t = (\max_c p^t_c, 1 - \max_c p^t_c)` and :math:`b^s = (p^s_y, 1 - p^s_y)` of
    p = softmax(z / :math:`T_\alpha`): the student learns the true class with the confidence that the teacher has in
    its own prediction. :math:`\hat p` is the softmax of z / T over the classes with :math:`z^t_c < z^t_y` only, so what
    the teacher ranks above the true class is left out. A student that equals the teacher has loss zero only where
    the teacher is right. No gradient reaches the teacher.

    Args:
      student_logits: Logits :math:`z^s`, `[..., classes]`, any floating dtype.
      teacher_logits: Logits :math:`z^t`, with the same shape.
      labels: True class y of each example.
      alpha: Weight of the confidence's term.
      beta: Weight of the other classes' term; 8 on CIFAR-100, 2 on ImageNet.
      temperature: Temperature T, positive; 4 on CIFAR-100, 1 on ImageNet.
      alpha_temperature: Temperature :math:`T_\alpha`, positive.

    Returns:
      The loss of each example in nats, `[...]`, float32 or wider.

    Examples:
      >>> teacher = jnp.array([[6.0, 7.0, 9.0]])
      >>> print(rld(teacher + 5, teacher, jnp.array([2])).round(4))  # right, and agreed
      [0.]
      >>> print(rld(jnp.zeros((1, 3)), teacher, jnp.array([0])).round(4))  # no class is below the true one
      [0.557]

    References:
      Sun et al., `Knowledge Distillation with Refined Logits <https://arxiv.org/abs/2408.07703>`_, 2025 (on CIFAR-100
      the weight increases over 20 epochs, on ImageNet over one).
    """
    student, teacher = widen(student_logits), widen(jax.lax.stop_gradient(teacher_logits))
    classes = student.shape[-1]
    is_true = jax.nn.one_hot(labels, classes, dtype=bool)

    def log_binary(logits: Array, chosen: Array) -> Array:
        """Returns the log-probabilities of the chosen class and of all others together."""
        log_p = jax.nn.log_softmax(logits / alpha_temperature)
        of_chosen = jnp.sum(jnp.where(chosen, log_p, 0), axis=-1)
        of_others = jax.nn.logsumexp(jnp.where(chosen, MASKED_LOGIT, log_p), axis=-1)
        return jnp.stack([of_chosen, of_others], axis=-1)

    of_teacher = log_binary(teacher, jax.nn.one_hot(jnp.argmax(teacher, axis=-1), classes, dtype=bool))
    confidence_term = _divergence(of_teacher, log_binary(student, is_true))

    below = teacher < jnp.sum(jnp.where(is_true, teacher, 0), axis=-1, keepdims=True)
    ours, theirs = (
        jax.nn.log_softmax(jnp.where(below, logits / temperature, MASKED_LOGIT)) for logits in (student, teacher)
    )
    below_term = expectation(jnp.where(below, jnp.exp(theirs), 0), theirs - ours)
    return alpha * alpha_temperature**2 * confidence_term + beta * temperature**2 * below_term


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

    With :math:`\gamma = 1` it is the cross-entropy with the teacher's prediction: `kd` up to a constant. As in the
    authors' code, there is no factor :math:`T^2`. No gradient reaches the teacher. The loss is not zero where the
    predictions agree.

    Args:
      student_logits: Logits :math:`z^s`, `[..., classes]`, any floating dtype, from the network or an exit branch.
      teacher_logits: Logits :math:`z^t`, with the same shape.
      labels: True class y of each example.
      exponent: Exponent :math:`\gamma`, at least 1; the authors use 1 on CIFAR-100, 1 to 1.5 on ImageNet.
      temperature: Temperature T, positive.

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
    r"""Computes DIST: one minus the correlation of both predictions, within examples and within classes.

    .. math::
      T^2 \Big[\beta \big(1 - \tfrac{1}{B} \sum_i \rho(p^s_{i\cdot}, p^t_{i\cdot})\big)
      + \gamma \big(1 - \tfrac{1}{C} \sum_c \rho(p^s_{\cdot c}, p^t_{\cdot c})\big)\Big], \qquad
      \rho(a, b) = \frac{(a - \bar a) \cdot (b - \bar b)}{|a - \bar a|\, |b - \bar b| + 10^{-8}}

    with p = softmax(z / T). No gradient reaches the teacher. As in the authors' code, the correlation of a constant is
    0, even with itself: a class that neither network predicts counts as a disagreement, and a class that is masked in
    all examples costs :math:`\gamma / C`. Unlike there, the student's :math:`|a - \bar a|` is at least that of a
    standard deviation of 1 % of the mean. Otherwise the gradient grows to 1e7 for a classifier that is initialized to
    zeros, as in MLP-Mixer and ResMLP.

    Args:
      student_logits: Logits :math:`z^s`, any floating dtype.
      teacher_logits: Logits :math:`z^t`, with the same shape.
      beta: Weight of the correlation between the classes of an example.
      gamma: Weight of the correlation between the examples of a class.
      temperature: Temperature T, positive; the authors use 4 on CIFAR-100 and 1 on ImageNet.

    Returns:
      A scalar, float32 or wider: a statistic of the batch.

    Examples:
      >>> logits = jnp.array([[0.0, 1.0, 2.0], [3.0, 1.0, 1.0]])
      >>> print(abs(dist(logits, logits).round(4)))
      0.0

    References:
      Huang et al., `Knowledge Distillation from A Stronger Teacher <https://arxiv.org/abs/2205.10536>`_, 2022 (weight
      2).
    """
    ours = jax.nn.softmax(widen(student_logits) / temperature)
    theirs = jax.nn.softmax(widen(jax.lax.stop_gradient(teacher_logits)) / temperature)
    within_examples = 1 - _correlation(ours, theirs).mean()
    within_classes = 1 - _correlation(ours.T, theirs.T).mean()
    return temperature**2 * (beta * within_examples + gamma * within_classes)


def _flattened(teacher_logits: Float[Array, "*batch classes"], exponent: float) -> tuple[Array, Array]:
    """Returns the logarithms of q and of U."""
    powers = exponent * jax.nn.log_softmax(widen(jax.lax.stop_gradient(teacher_logits)))
    log_sum = jax.nn.logsumexp(powers, axis=-1, keepdims=True)
    return powers - log_sum, log_sum[..., 0]


def _divergence(log_p: Float[Array, "*batch classes"], log_q: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    """Returns KL(p || q)."""
    return expectation(jnp.exp(log_p), log_p - log_q)


def _correlation(ours: Float[Array, "rows columns"], theirs: Float[Array, "rows columns"]) -> Float[Array, "rows 1"]:
    mean = ours.mean(axis=1, keepdims=True)
    a, b = ours - mean, theirs - theirs.mean(axis=1, keepdims=True)
    least = _MIN_RELATIVE_STD * ours.shape[1] ** 0.5 * mean
    return jnp.sum(a * b, axis=1, keepdims=True) / (jnp.maximum(norm(a), least) * norm(b) + 1e-8)

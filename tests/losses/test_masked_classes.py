"""Losses with masked classes (logits of minus infinity) against numpy in float64, with 0 * inf = 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from lfcc_jax import losses, methods, models

INF = np.inf
STUDENT, TEACHER, LABEL = [0.5, 1.0, 2.0, -1.0], [1.0, -INF, 0.3, 2.0], 3


def dot(p, x):
    return np.sum(np.where(p == 0, 0, p * np.where(p == 0, 0, x)))


def divergence(log_p, log_q):
    with np.errstate(invalid="ignore"):
        return dot(np.exp(log_p), log_p - log_q)


def kd(s, t, y, temperature=1.0):
    return temperature**2 * divergence(log_softmax(t / temperature), log_softmax(s / temperature))


def standardized_kd(s, t, y):
    def z_scores(z):
        kept = z[z > -INF]
        return (z - kept.mean()) / (kept.std(ddof=1) + 1e-7)

    return kd(z_scores(s), z_scores(t), y, 2.0)


def flattened(t, gamma=0.2):
    powers = gamma * log_softmax(t)
    return powers - logsumexp(powers), np.exp(logsumexp(powers))


def ttm(s, t, y):
    return divergence(flattened(t)[0], log_softmax(s))


def wttm(s, t, y):
    return flattened(t)[1] * ttm(s, t, y)


def dkd(s, t, y):
    def binary(z):
        p = softmax(z / 4)[y]
        return np.log(np.array([p, 1 - p]))

    def others(z):
        return log_softmax(np.delete(z, y) / 4)

    with np.errstate(divide="ignore"):
        return 16 * (divergence(binary(t), binary(s)) + 8 * divergence(others(t), others(s)))


def rld(s, t, y):
    def binary(z, c):
        p = softmax(z)[c]
        return np.log(np.array([p, 1 - p]))

    def below(z):
        return log_softmax(z[t < t[y]] / 4)

    with np.errstate(divide="ignore"):
        confidence = divergence(binary(t, t.argmax()), binary(s, y))
        return confidence + (8 * 16 * divergence(below(t), below(s)) if np.isfinite(t[t < t[y]]).any() else 0)


def ofa(s, t, y):
    is_true = np.arange(len(s)) == y
    return -dot((softmax(t) + is_true) ** 1.5 - is_true, log_softmax(s))


def cross_entropy(s, t, y):
    return -log_softmax(s)[y]


def soft_cross_entropy(s, t, y):
    return -dot(softmax(t), log_softmax(s))


def standardized(student, teacher, labels):
    return losses.kd(losses.standardize_logits(student), losses.standardize_logits(teacher), temperature=2.0)


LOSSES = {
    "kd": (lambda s, t, y: losses.kd(s, t), kd),
    "kd at T=4": (lambda s, t, y: losses.kd(s, t, temperature=4.0), functools.partial(kd, temperature=4.0)),
    "standardized kd": (standardized, standardized_kd),
    "ttm": (lambda s, t, y: losses.ttm(s, t), ttm),
    "wttm": (lambda s, t, y: losses.wttm(s, t), wttm),
    "dkd": (losses.dkd, dkd),
    "rld": (losses.rld, rld),
    "ofa": (functools.partial(losses.ofa, exponent=1.5), ofa),
    "cross_entropy": (lambda s, t, y: losses.cross_entropy(s, y), cross_entropy),
    "cross_entropy with probabilities": (
        lambda s, t, y: losses.cross_entropy(s, jax.nn.softmax(jax.lax.stop_gradient(t))),
        soft_cross_entropy,
    ),
}
# (student, teacher, label). The key says which network masks a class, or which classes are masked.
CASES = {
    "teacher": (STUDENT, TEACHER, LABEL),
    "both": ([0.5, -INF, 2.0, -1.0], TEACHER, LABEL),
    "student": ([0.5, -INF, 2.0, -1.0], [1.0, 0.2, 0.3, 2.0], LABEL),
    "label, by the teacher": (STUDENT, TEACHER, 1),
    "label, by both": ([0.5, -INF, 2.0, -1.0], TEACHER, 1),
    "all but the label": ([-INF, 1.0, -INF, -INF], [-INF, 2.0, -INF, -INF], 1),
    "all but two": ([0.5, 1.0, -INF, -INF], [3.0, 2.0, -INF, -INF], 1),
}


@functools.cache
def compiled(name):
    loss = LOSSES[name][0]
    return jax.jit(jax.value_and_grad(lambda s, t, y: loss(s, t, y).sum(), (0, 1)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_losses_with_masked_classes_match_float64_and_have_finite_gradients(name, case):
    student, teacher, label = CASES[case]
    student, teacher = np.array(student), np.array(teacher)
    if case == "all but the label" and name in ("standardized kd", "dkd"):
        expected = 0.0  # one class is certain; numpy's standard deviation of one number is NaN
    else:
        expected = LOSSES[name][1](student, teacher, label)
    value, gradients = compiled(name)(
        jnp.asarray(student, jnp.float32)[None], jnp.asarray(teacher, jnp.float32)[None], jnp.array([label])
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "expected"), [("kd", 1.909683), ("ttm", 1.077275), ("wttm", 2.497096), ("dkd", 56.235109)]
)
def test_numpy_references_have_the_recorded_values(name, expected):
    np.testing.assert_allclose(LOSSES[name][1](np.array(STUDENT), np.array(TEACHER), LABEL), expected, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_a_class_masked_by_both_networks_equal_those_without_it(name):
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(3 * rng.normal(size=(6, 5)), jnp.float32) for _ in range(2))
    labels = jnp.array([0, 3, 1, 4, 0, 1])
    masked = [x.at[:, 2].set(-jnp.inf) for x in (student, teacher)]
    value, (gradient, _) = compiled(name)(*masked, labels)
    kept = np.array([0, 1, 3, 4])
    expected, (expected_gradient, _) = compiled(name)(
        student[:, kept], teacher[:, kept], labels - (labels > 2).astype(int)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, kept], expected_gradient, rtol=1e-4, atol=1e-5)
    assert not gradient[:, 2].any()


def test_cross_entropy_with_label_smoothing_is_infinite_for_a_masked_class():
    logits = jnp.array([[0.5, -jnp.inf, 2.0, -1.0]])
    loss = functools.partial(losses.cross_entropy, labels=jnp.array([LABEL]), label_smoothing=0.1)
    assert np.isposinf(loss(logits)).all()
    assert np.isfinite(jax.grad(lambda z: loss(z).sum())(logits)).all()


def test_dist_counts_a_class_masked_by_both_networks_as_correlation_zero():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(6, 5)), jnp.float32).at[:, 2].set(-jnp.inf) for _ in range(2))
    p, q = (softmax(np.asarray(x, np.float64), axis=1) for x in (student, teacher))
    within_examples = np.mean([np.corrcoef(*rows)[0, 1] for rows in zip(p, q, strict=True)])
    within_classes = sum(np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(5) if c != 2) / 5
    value, gradient = jax.value_and_grad(losses.dist)(student, teacher)
    np.testing.assert_allclose(value, 2 - within_examples - within_classes, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_losses_do_not_treat_nan_logits_as_masked():
    student, teacher = (jnp.asarray(x, jnp.float32)[None] for x in (STUDENT, TEACHER))
    for name in LOSSES:
        value, _ = compiled(name)(student.at[0, 1].set(jnp.nan), teacher, jnp.array([LABEL]))
        assert np.isnan(value), name


def test_srrl_ignores_classes_masked_by_the_teacher():
    rng = np.random.default_rng(0)
    ours, theirs = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)

    def loss(bias, kept):
        head = {"kernel": kernel[:, kept], "bias": bias[kept]}
        taught = methods.TeacherOutput(theirs @ head["kernel"] + head["bias"][None], {"pooled": theirs}, head)
        method, student = methods.create("srrl"), models.Output(jnp.zeros((6, len(kept))), {"pooled": ours})
        params = method.init(jax.random.key(0), {}, student, taught)
        return jax.value_and_grad(lambda p: method.apply(p, {}, student, taught).sum())(params)

    masked = loss(jnp.array([0.1, 0.2, -jnp.inf, 0.3, 0.4]), np.arange(5))
    without = loss(jnp.array([0.1, 0.2, 9.0, 0.3, 0.4]), np.array([0, 1, 3, 4]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), masked, without)

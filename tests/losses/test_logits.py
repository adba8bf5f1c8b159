import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from lfcc_jax.losses import cross_entropy, kd


def random_logits(seed, scale=3.0):
    return np.random.default_rng(seed).normal(size=(16, 7)) * scale


LABELS = jnp.arange(16) % 7


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_matches_smoothed_labels_in_float64(smoothing):
    logits = random_logits(0)
    targets = (1 - smoothing) * np.eye(7)[LABELS] + smoothing / 7
    expected = -(targets * scipy.special.log_softmax(logits, axis=-1)).sum(-1)
    got = cross_entropy(jnp.asarray(logits, jnp.float32), LABELS, label_smoothing=smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_without_smoothing_matches_optax():
    logits = jnp.asarray(random_logits(1), jnp.float32)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    np.testing.assert_allclose(cross_entropy(logits, LABELS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_and_its_gradient_match_float64(temperature):
    student, teacher = random_logits(2), random_logits(3)
    log_s, log_t = (scipy.special.log_softmax(z / temperature, axis=-1) for z in (student, teacher))
    value = temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(-1)
    gradient = temperature * (np.exp(log_s) - np.exp(log_t))
    s, t = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    np.testing.assert_allclose(kd(s, t, temperature=temperature), value, rtol=1e-5, atol=1e-5)
    got = jax.grad(lambda z: kd(z, t, temperature=temperature).sum())(s)
    np.testing.assert_allclose(got, gradient, rtol=1e-5, atol=1e-5)


def test_kd_is_zero_with_zero_gradient_where_the_student_is_the_teacher():
    z = jnp.asarray(random_logits(4), jnp.float32)
    np.testing.assert_array_equal(kd(z, z), 0.0)
    np.testing.assert_allclose(jax.grad(lambda s: kd(s, z).sum())(z), 0.0, atol=1e-6)


def test_kd_is_invariant_to_shifts_of_the_logits():
    student, teacher = (jnp.asarray(random_logits(seed), jnp.float32) for seed in (5, 6))
    np.testing.assert_allclose(kd(student + 5, teacher - 3), kd(student, teacher), rtol=1e-4, atol=1e-5)


def test_control_divergence_of_raw_logits_depends_on_shifts_and_has_a_gradient_at_the_teacher():
    student, teacher = (jnp.asarray(random_logits(seed), jnp.float32) for seed in (5, 6))

    def raw(s, t):  # what a known library does by default: no softmax
        return jnp.sum(t * (jnp.log(jnp.abs(t)) - jnp.log(jnp.abs(s))), axis=-1)

    assert not np.allclose(raw(student + 5, teacher - 3), raw(student, teacher), rtol=1e-2)
    assert np.abs(jax.grad(lambda s: raw(s, teacher).sum())(teacher)).max() > 0.1


@pytest.mark.parametrize("loss", [lambda s, t: kd(s, t), lambda s, t: cross_entropy(s, LABELS, label_smoothing=0.1)])
def test_kd_and_cross_entropy_are_finite_for_logits_of_ten_thousand(loss):
    student = jnp.asarray(np.sign(random_logits(7)) * 1e4, jnp.float32)
    teacher = -student
    assert np.isfinite(loss(student, teacher)).all()
    assert np.isfinite(jax.grad(lambda s: loss(s, teacher).sum())(student)).all()


def test_kd_has_no_gradient_for_the_teacher():
    student, teacher = (jnp.asarray(random_logits(seed), jnp.float32) for seed in (8, 9))
    np.testing.assert_array_equal(jax.grad(lambda t: kd(student, t).sum())(teacher), 0.0)


def test_kd_of_bfloat16_logits_is_float32_and_close_to_that_of_float32():
    student, teacher = (jnp.asarray(random_logits(seed), jnp.bfloat16) for seed in (10, 11))
    got = kd(student, teacher)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, kd(student.astype(jnp.float32), teacher.astype(jnp.float32)), rtol=1e-6)

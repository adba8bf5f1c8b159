"""Values and gradients of the newer losses against their public code, in float64.

`tests/goldens/newer_losses.npz` was recorded once, in float64, from the PyTorch code of RSD (spacewanderx/RSD), refined
logits (zju-SWJ/RLD), LightlyTrain's distillation, version 3 (lightly-ai/lightly-train), UNIC (naver/unic) and ScaleKD
(deep-optimization/ScaleKD). It holds inputs, settings, values and the student's gradient. Maps are
[batch, channels, height, width], or tokens [batch, positions, channels].
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lfcc_jax import losses
from lfcc_jax.errors import UserError

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "newer_losses.npz")


def golden(name, key):
    return jnp.asarray(GOLDENS[f"{name}/{key}"])


def setting(name, key):
    return GOLDENS[f"{name}/{key}"].item()


def from_channels_first(x):
    return jnp.moveaxis(x, 1, 3)


def as_map(x):
    """Returns nine tokens as a map of 3 x 3; other numbers of axes unchanged."""
    return x.reshape(x.shape[0], 3, 3, x.shape[2]) if x.ndim == 3 else x


def rsd(name, student, teacher):
    return losses.rsd(student, teacher, kappa=setting(name, "kappa"))


def rsd_projected(name, student, teacher):
    x = student @ golden(name, "linear1").T
    x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
    x = x * golden(name, "scale")[None] + golden(name, "bias")[None]
    return rsd(name, jax.nn.gelu(x, approximate=False) @ golden(name, "linear2").T, teacher)


def rld(name, student, teacher):
    if setting(name, "standardised"):
        student, teacher = map(losses.standardize_logits, (student, teacher))
    settings = {key: setting(name, key) for key in ("alpha", "beta", "temperature", "alpha_temperature")}
    return losses.rld(student, teacher, golden(name, "labels"), **settings)


def queue_global(name, student, teacher):
    return losses.queue_similarity(student, teacher, golden(name, "queue"))


def queue_local(name, student, teacher):
    return losses.token_similarity(as_map(student), as_map(teacher))


def regression(name, student, teacher):
    return losses.regression(as_map(student), as_map(teacher))


def dual_view(name, student, teacher):
    student, teacher = map(from_channels_first, (student, teacher))
    return losses.dual_view(student, teacher, view=name.removeprefix("dual_view_"))


LOSSES = {
    "rsd_a": rsd,
    "rsd_b": rsd,
    "rsd_c": rsd,
    "rsd_projected": rsd_projected,
    "rld_cifar": rld,
    "rld_imagenet": rld,
    "rld_standardised": rld,
    "queue_global": queue_global,
    "queue_local": queue_local,
    "regression_pooled": regression,
    "regression_map": regression,
    "dual_view_spatial": dual_view,
    "dual_view_frequency": dual_view,
}


@pytest.mark.parametrize("name", LOSSES)
def test_newer_losses_and_gradients_match_their_public_code(name):
    with jax.enable_x64(True):
        student, teacher = golden(name, "student"), golden(name, "teacher")
        loss = jax.jit(jax.value_and_grad(lambda x: LOSSES[name](name, x, teacher).mean()))
        value, gradient = jax.device_get(loss(student))
        assert value.dtype == np.float64
    np.testing.assert_allclose(value, GOLDENS[f"{name}/value"], rtol=1e-12)
    expected = GOLDENS[f"{name}/grad"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


def test_newer_goldens_and_losses_have_the_same_names():
    assert {key.rpartition("/")[0] for key in GOLDENS if key.endswith("/value")} == set(LOSSES)


def test_control_rsd_with_epsilon_inside_the_root_or_an_unbiased_deviation_differs_from_the_golden():
    def other(name, ddof, inside):
        student, teacher = (GOLDENS[f"{name}/{role}"] for role in ("student", "teacher"))

        def standardized(x):
            deviation = np.sqrt(x.var(0, ddof=ddof) + 1e-5) if inside else x.std(0, ddof=ddof) + 1e-5
            return (x - x.mean(0)) / deviation

        errors = standardized(teacher).T @ standardized(student) / len(student) - np.eye(student.shape[1])
        weights = np.where(np.eye(student.shape[1]), 1, GOLDENS[f"{name}/kappa"])
        return abs((weights * errors**2).sum() / GOLDENS[f"{name}/value"] - 1)

    for name in ("rsd_a", "rsd_b", "rsd_c"):
        assert other(name, ddof=0, inside=False) < 1e-12
        assert other(name, ddof=0, inside=True) > 1e-7
        assert other(name, ddof=1, inside=False) > 1e-4


def vectors(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_rsd_is_invariant_to_the_scale_and_shift_of_each_channel():
    student, teacher = vectors(32, 6), vectors(32, 6, seed=1)
    scale, shift = jnp.arange(1.0, 7)[None], jnp.arange(6.0)[None]
    expected = losses.rsd(student, teacher)
    np.testing.assert_allclose(losses.rsd(scale * student + shift, teacher), expected, rtol=1e-4)
    np.testing.assert_allclose(losses.rsd(student, scale * teacher - shift), expected, rtol=1e-4)
    assert abs(losses.rsd(student @ vectors(6, 6, seed=2), teacher) / expected - 1) > 1e-2


def test_rsd_with_student_and_teacher_exchanged_has_the_same_value():
    student, teacher = vectors(32, 6), vectors(32, 6, seed=1)
    np.testing.assert_allclose(losses.rsd(student, teacher), losses.rsd(teacher, student), rtol=1e-5)


def test_rsd_of_a_constant_channel_is_one_without_a_gradient():
    student, teacher = vectors(8, 3), vectors(8, 3, seed=1)
    constant = teacher.at[:, 1].set(5.0)
    loss, gradient = jax.value_and_grad(losses.rsd)(student, constant, kappa=0.0)
    expected = losses.rsd(student[:, ::2], teacher[:, ::2], kappa=0.0) + 1
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not np.any(gradient[:, 1])
    assert np.all(gradient[:, ::2])
    assert np.isfinite(jax.grad(losses.rsd)(constant, teacher)).all()


def test_rsd_ignores_masked_examples_even_if_they_are_nan():
    student, teacher = vectors(8, 3), vectors(8, 3, seed=1)
    where = jnp.array([True, False] * 4)
    bad = [jnp.where(where[:, None], x, jnp.nan) for x in (student, teacher)]
    loss, gradient = jax.value_and_grad(lambda s: losses.rsd(s, bad[1], where=where))(bad[0])
    kept, kept_gradient = jax.value_and_grad(losses.rsd)(student[::2], teacher[::2])
    np.testing.assert_allclose(loss, kept, rtol=1e-5)
    np.testing.assert_allclose(gradient[::2], kept_gradient, rtol=1e-4, atol=1e-6)
    assert not np.any(gradient[1::2])
    # A part of the batch without examples does not count.
    first = jnp.arange(8) < 4
    halves = [losses.rsd(student, teacher, groups=2, where=w) for w in (first, ~first)]
    np.testing.assert_allclose(halves[0], losses.rsd(student[:4], teacher[:4]), rtol=1e-5)
    np.testing.assert_allclose(sum(halves) / 2, losses.rsd(student, teacher, groups=2), rtol=1e-5)
    assert losses.rsd(student, teacher, where=jnp.zeros(8, bool)) == 0


def test_rsd_of_groups_is_the_mean_over_equal_parts_of_the_batch():
    student, teacher = vectors(12, 3), vectors(12, 3, seed=1)
    parts = [losses.rsd(student[i : i + 4], teacher[i : i + 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(losses.rsd(student, teacher, groups=3), np.mean(parts), rtol=1e-5)
    assert abs(losses.rsd(student, teacher) / np.mean(parts) - 1) > 1e-2
    with pytest.raises(UserError, match="`groups` must be positive and divide the batch of 12, got 5"):
        losses.rsd(student, teacher, groups=5)


def test_queue_similarity_ignores_masked_entries():
    student, teacher, queue = vectors(4, 6), vectors(4, 6, seed=1), vectors(10, 6, seed=2)
    queue /= np.linalg.norm(queue, axis=1, keepdims=True)
    where = jnp.arange(10) < 7
    masked = losses.queue_similarity(student, teacher, queue.at[7:].set(0), where=where)
    np.testing.assert_allclose(masked, losses.queue_similarity(student, teacher, queue[:7]), rtol=1e-5)
    assert not np.allclose(masked, losses.queue_similarity(student, teacher, queue.at[7:].set(0)), rtol=1e-3)
    empty = jnp.zeros(10, bool)
    loss, gradient = jax.value_and_grad(lambda s: losses.queue_similarity(s, teacher, queue, where=empty).sum())(
        student
    )
    assert loss == 0
    assert not np.any(gradient)


def test_similarity_losses_are_invariant_to_the_length_of_vectors():
    student, teacher, queue = vectors(4, 6), vectors(4, 6, seed=1), jnp.eye(6)
    expected = losses.queue_similarity(student, teacher, queue)
    scale = jnp.arange(1.0, 5)[:, None]
    np.testing.assert_allclose(losses.queue_similarity(scale * student, teacher / scale, queue), expected, rtol=1e-4)
    ours, theirs = vectors(4, 3, 3, 6), vectors(4, 3, 3, 6, seed=1)
    expected = losses.token_similarity(ours, theirs)
    by_position = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    np.testing.assert_allclose(losses.token_similarity(by_position * ours, theirs), expected, rtol=1e-4)
    assert not np.allclose(losses.token_similarity(ours + 1, theirs), expected, rtol=1e-2)


def test_token_similarity_interpolates_the_student_as_torch_does_without_antialiasing():
    ramp = jnp.stack(jnp.broadcast_arrays(jnp.arange(2.0)[:, None] + 1, 2 * jnp.arange(2.0)[None, :] - 1), -1)[None]
    # Half-pixel centers; values at the border are repeated.
    enlarged = np.stack(np.meshgrid([1, 1.25, 1.75, 2], [-1, -0.5, 0.5, 1], indexing="ij"), -1)[None]
    teacher = vectors(1, 4, 4, 2)
    expected = losses.token_similarity(jnp.asarray(enlarged, jnp.float32), teacher)
    np.testing.assert_allclose(losses.token_similarity(ramp, teacher), expected, rtol=1e-5)
    # Each output reads the two nearest inputs only, so the last column of 8 becomes the mean of its last two.
    wide = vectors(1, 4, 8, 2)
    halved = (wide[:, :, ::2] + wide[:, :, 1::2]) / 2
    np.testing.assert_allclose(
        losses.token_similarity(wide, teacher), losses.token_similarity(halved, teacher), rtol=1e-4
    )
    quarter = (vectors(1, 4, 16, 2)[:, :, 1::4] + vectors(1, 4, 16, 2)[:, :, 2::4]) / 2
    np.testing.assert_allclose(
        losses.token_similarity(vectors(1, 4, 16, 2), teacher), losses.token_similarity(quarter, teacher), rtol=1e-4
    )


def test_only_the_frequency_view_is_invariant_to_a_shift_of_a_channel():
    student, teacher = vectors(2, 4, 4, 3), vectors(2, 4, 4, 3, seed=1)
    shift = jnp.array([3.0, -1.0, 2.0]).reshape(1, 1, 1, 3)
    for view, changes in (("spatial", True), ("frequency", False)):
        expected = losses.dual_view(student, teacher, view=view)
        np.testing.assert_allclose(losses.dual_view(2 * student, teacher, view=view), expected, rtol=1e-5)
        shifted = losses.dual_view(student + shift, teacher, view=view)
        assert np.allclose(shifted, expected, rtol=1e-4) != changes


def test_frequency_view_equals_removing_the_lowest_coefficient_of_the_cosine_transform():
    maps = [np.asarray(vectors(2, 5, 7, 3, seed=seed), np.float64) for seed in (0, 1)]

    def filtered(x):
        coefficients = scipy.fft.dctn(x, axes=(1, 2), norm="ortho")
        coefficients[:, 0, 0] = 0
        return jnp.asarray(scipy.fft.idctn(coefficients, axes=(1, 2), norm="ortho"), jnp.float32)

    got = losses.dual_view(*(jnp.asarray(x, jnp.float32) for x in maps), view="frequency")
    expected = losses.dual_view(*map(filtered, maps))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_dual_view_rejects_an_unknown_view(types_unchecked):
    with pytest.raises(UserError, match="unknown view 'frequenzy'; did you mean 'frequency'"):
        losses.dual_view(vectors(2, 4, 4, 3), vectors(2, 4, 4, 3), view="frequenzy")


def test_rld_is_independent_of_classes_that_the_teacher_ranks_above_the_true_one():
    student, teacher, labels = vectors(4, 6), vectors(4, 6, seed=1), jnp.array([2, 0, 5, 3])
    above = teacher > jnp.take_along_axis(teacher, labels[:, None], axis=1)
    assert np.any(above)
    changed = jnp.where(above, student + 1, student)
    only_second = {"alpha": 0.0, "beta": 1.0}
    expected = losses.rld(student, teacher, labels, **only_second)
    np.testing.assert_allclose(losses.rld(changed, teacher, labels, **only_second), expected, rtol=1e-5)
    assert not np.allclose(losses.rld(changed, teacher, labels), losses.rld(student, teacher, labels), rtol=1e-3)
    top = teacher.argmax(axis=1)
    np.testing.assert_allclose(losses.rld(teacher + 3, teacher, top), 0, atol=1e-5)
    # With the teacher's prediction as the label, it is DKD but for the confidence's temperature.
    np.testing.assert_allclose(
        losses.rld(student, teacher, top, temperature=1.0),
        losses.dkd(student, teacher, top, temperature=1.0),
        rtol=1e-4,
    )

"""Properties that hold for every loss between a student and a teacher."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from lfcc_jax import losses

LABELS = jnp.array([0, 3, 1, 4, 0, 2])


def standardized_kd(student, teacher):
    return losses.kd(losses.standardize_logits(student), losses.standardize_logits(teacher), temperature=2.0)


def labeled(loss, **settings):
    """Returns a loss with the labels as an optional last argument, so that batches can be reordered."""
    return lambda student, teacher, labels=LABELS: loss(student, teacher, labels, **settings)


LOGITS = {
    "kd": losses.kd,
    "kd at T=4": functools.partial(losses.kd, temperature=4.0),
    "kd, standardized": standardized_kd,
    "dkd": labeled(losses.dkd),
    "rld": labeled(losses.rld),
    "ofa": labeled(losses.ofa),
    "ofa, gamma 1.5": labeled(losses.ofa, exponent=1.5),
    "dist": losses.dist,
    "ttm": losses.ttm,
    "ttm, gamma 1": functools.partial(losses.ttm, exponent=1.0),
    "wttm": losses.wttm,
    "wttm, gamma 1": functools.partial(losses.wttm, exponent=1.0),
}
MAPS = {
    "fitnet": losses.fitnet,
    "at": losses.at,
    "nst": losses.nst,
    "hcl": losses.hcl,
    "vid": lambda student, teacher: losses.vid(student, teacher, losses.vid_scale_init(3)),
    "dual_view": losses.dual_view,
    "dual_view, frequency": functools.partial(losses.dual_view, view="frequency"),
    "regression of maps": losses.regression,
    "similarities of positions": losses.token_similarity,
}
QUEUE = jnp.asarray(scipy.stats.ortho_group.rvs(4, random_state=0)[:3], jnp.float32)
BY_VECTOR = {
    "regression": losses.regression,
    "queue": lambda student, teacher: losses.queue_similarity(student, teacher, QUEUE),
}
VECTORS = {"sp": losses.sp, "rkd": losses.rkd, "pkt": losses.pkt, "cc": losses.cc, "rsd": losses.rsd, **BY_VECTOR}
LOSSES = LOGITS | MAPS | VECTORS

LABELED = ("dkd", "rld", "ofa", "ofa, gamma 1.5")
SCALARS = ("dist", "cc", "rsd")
# The minimum of these is not zero, or not where the student equals the teacher.
NO_DIVERGENCES = ("ofa", "ofa, gamma 1.5", "rld", "ttm", "wttm", "vid", "rsd")
# The loss of an example depends on its own row only.
BY_EXAMPLE = [name for name in LOGITS | MAPS | BY_VECTOR if name != "dist"]


def pair(name, seed=0):
    """Returns a student's and a teacher's logits, maps or vectors for six examples."""
    shape = (6, 5) if name in LOGITS else (6, 4, 4, 3) if name in MAPS else (6, 4)
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(2 * rng.normal(size=shape), jnp.float32) for _ in range(2))


@functools.cache
def compiled(name):
    """Returns a compiled function: the loss, and the gradients of its sum for student and teacher."""

    def loss_and_gradients(*arguments):
        gradient = jax.grad(lambda s, t: LOSSES[name](s, t, *arguments[2:]).sum(), argnums=(0, 1))
        return LOSSES[name](*arguments), *gradient(*arguments[:2])

    return jax.jit(loss_and_gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_bfloat16_inputs_are_float32(name):
    student, teacher = (x.astype(jnp.bfloat16) for x in pair(name))
    loss, gradient, _ = compiled(name)(student, teacher)
    assert loss.shape == (() if name in SCALARS else (6,))
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    wide, wide_gradient, _ = compiled(name)(student.astype(jnp.float32), teacher.astype(jnp.float32))
    np.testing.assert_allclose(loss, wide, rtol=1e-5, atol=1e-6)
    # bfloat16 has a precision of eight bits.
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), wide_gradient, rtol=2**-8, atol=1e-5 * np.abs(wide_gradient).max()
    )


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in NO_DIVERGENCES])
def test_divergences_and_their_gradients_are_zero_where_the_student_is_the_teacher(name):
    student, teacher = pair(name)
    loss, gradient, _ = compiled(name)(student, teacher)
    zero, zero_gradient, _ = compiled(name)(teacher, teacher)
    np.testing.assert_allclose(zero, 0, atol=1e-5 * np.abs(loss).max())
    np.testing.assert_allclose(zero_gradient, 0, atol=1e-5 * np.abs(gradient).max())


def test_of_the_other_losses_only_ofa_and_vid_have_zero_gradient_where_the_student_is_the_teacher():
    for name in NO_DIVERGENCES:
        student, teacher = pair(name)
        _, gradient, _ = compiled(name)(student, teacher)
        _, there, _ = compiled(name)(teacher, teacher)
        assert (np.abs(there).max() < 1e-5 * np.abs(gradient).max()) == (name in ("ofa", "vid"))


@pytest.mark.parametrize("name", LOGITS)
def test_losses_are_invariant_to_shifts_of_the_logits(name):
    student, teacher = pair(name)
    shift = jnp.arange(6.0)[:, None]
    loss, gradient, _ = compiled(name)(student, teacher)
    shifted, shifted_gradient, _ = compiled(name)(student + shift, teacher - 3 * shift)
    np.testing.assert_allclose(shifted, loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shifted_gradient, gradient, rtol=1e-3, atol=1e-5)


EXTREMES = {
    "large": lambda x, sign: jnp.sign(x) * sign * 1e4,
    "mixed": lambda x, sign: jnp.where(x > 0, sign * 1e4, x),
    "small": lambda x, sign: x * 1e-20,
    "identical rows": lambda x, sign: jnp.broadcast_to(x[:1], x.shape),
    "constant": lambda x, sign: jnp.ones_like(x),
    "zeros": lambda x, sign: jnp.zeros_like(x),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite_for_extreme_inputs(name):
    student, teacher = pair(name)
    inputs = [x for extreme in EXTREMES.values() for x in (extreme(student, 1), extreme(teacher, -1))]
    for ours, theirs in itertools.chain(itertools.pairwise(inputs), zip(inputs, inputs, strict=True)):
        for x in compiled(name)(ours, theirs):
            assert np.isfinite(x).all()


def test_control_logarithm_of_a_softmax_is_not_finite_for_large_logits():
    student, teacher = (EXTREMES["large"](x, 1) for x in pair("kd"))

    def naive(s):  # as in several known libraries
        return jnp.sum(jax.nn.softmax(teacher) * -jnp.log(jax.nn.softmax(s)))

    assert not np.isfinite(naive(student))
    assert not np.isfinite(jax.grad(naive)(student)).all()


@pytest.mark.parametrize("scale", [0, 1e-8, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("name", LOGITS)
def test_gradients_of_a_classifier_initialized_to_zeros_are_bounded(name, scale):
    student, teacher = pair(name)
    _, usual, _ = compiled(name)(student, teacher)
    _, gradient, _ = compiled(name)(scale * student, teacher)
    assert np.abs(gradient).max() < 1e3 * np.abs(usual).max()


def test_control_published_logit_standardization_has_huge_gradients_near_zero():
    student, teacher = pair("kd")

    def published(x):
        return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True, ddof=1) + 1e-7)

    gradient = jax.grad(lambda s: losses.kd(published(s), published(teacher)).sum())(1e-6 * student)
    assert np.abs(gradient).max() > 1e4


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_no_gradient_for_the_teacher(name):
    _, _, gradient = compiled(name)(*pair(name))
    # CC's embedding of the teacher is trained.
    assert (np.abs(gradient).max() == 0) == (name != "cc")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same_with_jit_and_vmap(name):
    problems = [pair(name, seed) for seed in (0, 1)]
    expected = [compiled(name)(*problem)[:2] for problem in problems]
    np.testing.assert_allclose(LOSSES[name](*problems[0]), expected[0][0], rtol=1e-5, atol=1e-6)
    stacked = [jnp.stack(x) for x in zip(*problems, strict=True)]
    mapped = jax.vmap(compiled(name))(*stacked)[:2]
    for got, *parts in zip(mapped, *expected, strict=True):
        np.testing.assert_allclose(got, jnp.stack(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
    with jax.enable_x64(True):
        student, teacher = (jnp.asarray(x, jnp.float64) for x in pair(name, seed=3))
        loss = jax.jit(lambda s: LOSSES[name](s, teacher).sum())
        check_grads(loss, (student,), order=1, modes=["rev"], rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cc"])
def test_losses_are_equivariant_to_the_order_of_the_batch(name):
    student, teacher = pair(name)
    order = np.array([3, 1, 5, 0, 4, 2])
    loss, gradient, _ = compiled(name)(student, teacher)
    labels = (LABELS[order],) if name in LABELED else ()
    shuffled, shuffled_gradient, _ = compiled(name)(student[order], teacher[order], *labels)
    np.testing.assert_allclose(shuffled, loss if name in SCALARS else loss[order], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(shuffled_gradient, gradient[order], rtol=1e-3, atol=1e-5)


def test_cc_depends_on_the_order_of_the_batch():
    student, teacher = pair("cc")
    order = np.array([3, 1, 5, 0, 4, 2])
    loss, shuffled = losses.cc(student, teacher), losses.cc(student[order], teacher[order])
    assert abs(shuffled / loss - 1) > 1e-2


@pytest.mark.parametrize("name", LOSSES)
def test_only_relational_losses_of_other_examples_depend_on_an_example(name):
    student, teacher = pair(name)
    before, after = (compiled(name)(x, teacher)[0] for x in (student, student.at[0].add(student[1])))
    others = np.allclose(before, after) if name in SCALARS else np.array_equal(before[1:], after[1:])
    assert not np.array_equal(before, after)
    assert others == (name in BY_EXAMPLE)


@pytest.mark.parametrize("name", [*MAPS, "sp"])
def test_losses_resize_maps_to_the_smaller_grid(name):
    rng = np.random.default_rng(0)
    large, small = (jnp.asarray(rng.normal(size=(2, n, n, 3)), jnp.float32) for n in (8, 4))
    loss = LOSSES[name]
    assert np.isfinite(loss(large, small)).all()
    if name not in ("sp", "similarities of positions"):
        pooled = large.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
        np.testing.assert_allclose(loss(large, small), loss(pooled, small), rtol=1e-5)
        np.testing.assert_allclose(loss(small, large), loss(small, pooled), rtol=1e-5)


def test_fitnet_is_the_mean_squared_error():
    student, teacher = pair("fitnet")
    expected = ((np.asarray(student) - np.asarray(teacher)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(losses.fitnet(student, teacher), expected, rtol=1e-6)


@pytest.mark.parametrize("name", MAPS)
def test_losses_accept_maps_that_are_not_square(name):
    rng = np.random.default_rng(0)
    wide, tall, square = (jnp.asarray(rng.normal(size=(2, *n, 3)), jnp.float32) for n in ((3, 7), (8, 5), (4, 4)))
    for student, teacher in ((wide, wide), (wide, tall), (square, tall), (tall, square)):
        assert np.isfinite(LOSSES[name](student, teacher)).all()


def test_kd_equals_dkd_with_coupled_weights():
    student, teacher = pair("kd")
    beta = 1 - jax.nn.softmax(teacher / 4)[np.arange(6), LABELS]
    coupled = losses.dkd(student, teacher, LABELS, alpha=1.0, beta=beta, temperature=4.0)
    np.testing.assert_allclose(losses.kd(student, teacher, temperature=4.0), coupled, rtol=1e-5)


def test_crd_nce_is_finite_for_large_scores_and_excludes_minus_infinity():
    positive = jnp.array([-1e4, 0.0, 1e4])
    negatives = jnp.array([[1e4, 0.0, -jnp.inf], [-1e4, 0.0, -jnp.inf], [0.0, 0.0, -jnp.inf]])

    def loss(p, n):
        return losses.crd_nce(p, n, data_size=7)

    assert np.isfinite(loss(positive, negatives)).all()
    for gradient in jax.grad(lambda *x: loss(*x).sum(), argnums=(0, 1))(positive, negatives):
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(loss(positive, negatives.at[:, 2].set(-1e4)), loss(positive, negatives), rtol=1e-6)

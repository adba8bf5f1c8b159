"""InfoNCE in every layout against one golden in numpy float64, value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from lfcc_jax.errors import UserError
from lfcc_jax.losses import info_nce, info_nce_many

BATCH, DIM, TAU = 16, 6, 0.1
# A logit is at most 1 / tau = 10, so float32 rounds it by 6e-7, and a loss, a difference of two, by a few of these.
VALUE = 5e-6
# The gradient of the mean is at most 2 / (tau batch |code|): of the order of 1, and rounded at 1e-7 of that.
GRADIENT = 1e-6

RNG = np.random.default_rng(0)
STUDENT = jnp.asarray(RNG.standard_normal((BATCH, DIM)), jnp.float32)
TEACHER = STUDENT + jnp.asarray(RNG.standard_normal((BATCH, DIM)), jnp.float32)
WHERE = jnp.asarray(RNG.random(BATCH) > 0.3)
LABELS = jnp.asarray(RNG.integers(0, 5, BATCH))


def golden(student, teacher, tau=TAU, negatives="teacher", where=None, labels=None):
    """Returns the losses, and the gradients of their mean with respect to both codes, in plain numpy float64."""
    codes = {"student": np.asarray(student, np.float64), "teacher": np.asarray(teacher, np.float64)}
    norms = {name: np.linalg.norm(x, axis=1, keepdims=True) for name, x in codes.items()}
    units = {name: x / norms[name] for name, x in codes.items()}
    unit_grads = {name: np.zeros_like(x) for name, x in codes.items()}
    batch = len(student)
    negative = ~np.eye(batch, dtype=bool)
    counts = np.ones(batch, bool) if where is None else np.asarray(where)
    negative &= counts[None, :]
    if labels is not None:
        negative &= np.not_equal.outer(labels, labels)

    softmaxes = {
        "teacher": [("student", "teacher", ["teacher"])],
        "both": [("student", "teacher", ["teacher", "student"])],
        "symmetric": [("student", "teacher", ["teacher"]), ("teacher", "student", ["student"])],
    }[negatives]
    losses = np.zeros(batch)
    for anchor, positive, keys in softmaxes:
        a, p = units[anchor], units[positive]
        logits = [np.sum(a * p, axis=1, keepdims=True) / tau]
        logits += [np.where(negative, a @ units[key].T / tau, -np.inf) for key in keys]
        logits = np.concatenate(logits, axis=1)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        losses += np.where(counts, -np.log(probabilities[:, 0]), 0) / len(softmaxes)
        slopes = probabilities - (np.arange(logits.shape[1]) == 0)
        slopes *= counts[:, None] / (batch * tau * len(softmaxes))
        unit_grads[anchor] += slopes[:, :1] * p
        unit_grads[positive] += slopes[:, :1] * a
        for key, slope in zip(keys, np.split(slopes[:, 1:], len(keys), axis=1), strict=True):
            unit_grads[anchor] += slope @ units[key]
            unit_grads[key] += slope.T @ a
    grads = [
        (unit_grads[name] - units[name] * np.sum(units[name] * unit_grads[name], axis=1, keepdims=True)) / norms[name]
        for name in ("student", "teacher")
    ]
    return losses, grads


CASES = {
    "teacher": {"negatives": "teacher"},
    "both": {"negatives": "both"},
    "symmetric": {"negatives": "symmetric"},
    "masked": {"negatives": "both", "where": WHERE, "labels": LABELS},
}
LAYOUTS = {
    "global": {},
    "chunked": {"chunk_size": 5},  # which does not divide the batch
    "gathered": {"axis_name": ("data", "fsdp")},
    "gathered and chunked": {"axis_name": ("data", "fsdp"), "chunk_size": 8},
    "ring": {"axis_name": ("data", "fsdp"), "ring": True},
    "ring and chunked": {"axis_name": ("data", "fsdp"), "ring": True, "chunk_size": 1},
}
MESHES = {
    "1 device": ((1, 1), AxisType.Auto),
    "8 Auto": ((4, 2), AxisType.Auto),
    "8 Explicit": ((4, 2), AxisType.Explicit),
}


def on_mesh(shape, axis_type, layout):
    """Returns case -> (losses, gradients of their mean), compiled in one layout over both axes of a mesh."""
    axes = ("data", "fsdp")
    mesh = jax.make_mesh(shape, axes, axis_types=(axis_type,) * 2)
    batch = jax.P(axes)

    def loss(student, teacher, masks, negatives):
        function = functools.partial(info_nce, temperature=TAU, negatives=negatives, **layout)
        local = lambda s, t, masks: function(s, t, **masks)  # noqa: E731
        if "axis_name" in layout:
            local = jax.shard_map(local, mesh=mesh, in_specs=batch, out_specs=batch)
        return local(student, teacher, masks)

    def run(case):
        with jax.set_mesh(mesh):
            case = dict(case)
            negatives = case.pop("negatives")
            arrays = jax.device_put((STUDENT, TEACHER, case), jax.NamedSharding(mesh, batch))

            @jax.jit
            def value_and_grad(student, teacher, masks):
                def mean(student, teacher):
                    losses = loss(student, teacher, masks, negatives)
                    return losses.mean(), losses

                grads, losses = jax.grad(mean, (0, 1), has_aux=True)(student, teacher)
                return losses, grads

            return value_and_grad(*arrays)

    return run


def some():
    """Returns the masked case in every layout, and each choice of negatives in some: compilation is slow."""
    base, plain = ("global", "chunked", "gathered", "ring"), ("teacher", "both", "symmetric")
    chosen = [("8 Auto", layout, "masked") for layout in LAYOUTS]
    chosen += [(mesh, layout, "masked") for mesh in ("1 device", "8 Explicit") for layout in base]
    chosen += [("8 Auto", layout, case) for layout in ("global", "gathered", "ring") for case in plain]
    return [pytest.param(*choice, id=", ".join(choice)) for choice in chosen]


@pytest.mark.parametrize(("mesh", "layout", "case"), some())
def test_info_nce_matches_the_golden_in_every_layout(mesh, layout, case):
    losses, grads = on_mesh(*MESHES[mesh], LAYOUTS[layout])(CASES[case])
    expected, expected_grads = golden(STUDENT, TEACHER, **CASES[case])
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, atol=VALUE)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, atol=GRADIENT)


def test_info_nce_with_negatives_of_one_device_only_differs_from_the_golden():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    local = functools.partial(info_nce, temperature=TAU)
    losses = jax.shard_map(local, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))(STUDENT, TEACHER)
    assert np.mean(golden(STUDENT, TEACHER)[0] - losses) > 0.3


def test_golden_gradient_matches_finite_differences():
    for case in CASES.values():
        _, (grad, _) = golden(STUDENT, TEACHER, **case)
        step = np.zeros((BATCH, DIM))
        step[3, 2] = 1e-5
        up, down = (golden(np.asarray(STUDENT, np.float64) + s, TEACHER, **case)[0].mean() for s in (step, -step))
        np.testing.assert_allclose((up - down) / 2e-5, grad[3, 2], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("negatives", ["teacher", "both", "symmetric"])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4, -1e4])
def test_info_nce_is_finite_for_identical_rows_zeros_and_any_scale(negatives, scale):
    zero_row = STUDENT.at[3].set(0)
    for student, teacher in [
        (jnp.full((4, DIM), scale), jnp.full((4, DIM), scale)),
        (scale * zero_row, scale * TEACHER),
        (scale * STUDENT, jnp.full_like(zero_row, scale)),
    ]:

        def total(student, teacher):
            return info_nce(student, teacher, temperature=0.01, negatives=negatives).sum()

        value, grads = jax.value_and_grad(total, (0, 1))(student, teacher)
        assert jnp.isfinite(value)
        assert all(jnp.isfinite(g).all() for g in grads)


def test_info_nce_of_a_zero_code_has_cosine_zero_and_no_gradient():
    student = STUDENT.at[3].set(0)
    losses, grad = (
        info_nce(student, TEACHER, temperature=TAU),
        jax.grad(lambda s: info_nce(s, TEACHER, temperature=TAU).sum())(student),
    )
    np.testing.assert_allclose(losses[3], np.log(BATCH), rtol=1e-6)
    assert jnp.all(grad[3] == 0)
    assert jnp.all(jnp.any(grad[:3] != 0, axis=1))


def test_info_nce_is_invariant_to_scale():
    reference = info_nce(STUDENT, TEACHER, temperature=TAU)
    np.testing.assert_allclose(info_nce(1e4 * STUDENT, 1e-4 * TEACHER, temperature=TAU), reference, atol=VALUE)
    np.testing.assert_allclose(
        info_nce(-1e4 * STUDENT, 1e4 * TEACHER, temperature=TAU),
        info_nce(-STUDENT, TEACHER, temperature=TAU),
        atol=VALUE,
    )


@pytest.mark.parametrize("layout", [{}, {"chunk_size": 128}], ids=["global", "chunked"])
def test_info_nce_of_bfloat16_codes_is_close_to_float32_and_bfloat16_logits_are_not(layout):
    rng = np.random.default_rng(0)
    student = jnp.asarray(rng.standard_normal((512, 256)), jnp.float32)
    teacher = student + jnp.asarray(rng.standard_normal((512, 256)), jnp.float32)
    loss = functools.partial(info_nce, temperature=TAU, **layout)
    low = loss(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (student, teacher)]
    of_rounded = loss(*rounded)
    assert jnp.abs(low - of_rounded).max() < 1e-3
    # Rounding the codes themselves changes the mean by 6e-5 and the loss of an example by 0.002.
    exact = loss(student, teacher)
    assert abs(low.mean() - exact.mean()) < 1e-3 * exact.mean()
    assert jnp.abs(low - exact).max() < 0.005

    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rounded]
    logits = (unit[0] @ unit[1].T / TAU).astype(jnp.bfloat16)
    wrong = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    assert jnp.abs(wrong.astype(jnp.float32) - of_rounded).max() > 0.02


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), negatives=st.sampled_from(["teacher", "both", "symmetric"]))
def test_info_nce_is_equivariant_to_permutations_of_the_batch(seed, negatives):
    order = np.random.default_rng(seed).permutation(BATCH)
    loss = functools.partial(info_nce, temperature=TAU, negatives=negatives)
    kept = loss(STUDENT, TEACHER, where=WHERE, labels=LABELS)
    permuted = loss(STUDENT[order], TEACHER[order], where=WHERE[order], labels=LABELS[order])
    np.testing.assert_allclose(permuted, kept[order], atol=VALUE)


@pytest.mark.parametrize("negatives", ["teacher", "both", "symmetric"])
def test_info_nce_with_masked_examples_equals_the_batch_without_them(negatives):
    loss = functools.partial(info_nce, temperature=TAU, negatives=negatives)
    masked = loss(STUDENT, TEACHER, where=WHERE)
    assert np.all(masked[~WHERE] == 0)
    np.testing.assert_allclose(masked[WHERE], loss(STUDENT[WHERE], TEACHER[WHERE]), atol=VALUE)


@pytest.mark.parametrize("layout", [{}, {"chunk_size": 5}, {"axis_name": "data"}, {"axis_name": "data", "ring": True}])
def test_info_nce_ignores_nan_in_masked_examples(layout):
    loss = functools.partial(info_nce, temperature=TAU, negatives="both", **layout)
    local = lambda s, t, where: loss(s, t, where=where)  # noqa: E731
    if "axis_name" in layout:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        local = jax.shard_map(local, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    step = jax.jit(jax.value_and_grad(lambda *codes: local(*codes, WHERE).sum(), (0, 1)))
    expected = step(STUDENT, TEACHER)
    dirty = [jnp.where(WHERE[:, None], x, jnp.nan) for x in (STUDENT, TEACHER)]
    jax.tree.map(np.testing.assert_array_equal, step(*dirty), expected)
    assert not any(g[~WHERE].any() for g in expected[1])


def test_info_nce_without_negatives_is_zero():
    one = {"temperature": TAU, "negatives": "both"}
    for loss in (
        info_nce(STUDENT[:1], TEACHER[:1], **one),
        info_nce(STUDENT, TEACHER, labels=jnp.zeros(BATCH, int), **one),
        info_nce(STUDENT, TEACHER, labels=jnp.zeros(BATCH, int), chunk_size=3, **one),
    ):
        np.testing.assert_array_equal(loss, 0)


def test_info_nce_gradient_of_the_temperature_matches_finite_differences():
    def mean(log_tau):
        return info_nce(STUDENT, TEACHER, temperature=jnp.exp(log_tau), negatives="symmetric").mean()

    grad = jax.grad(mean)(jnp.log(0.1))
    step = 1e-5
    up, down = (golden(STUDENT, TEACHER, 0.1 * np.exp(s), "symmetric")[0].mean() for s in (step, -step))
    np.testing.assert_allclose(grad, (up - down) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize("ring", [False, True])
def test_info_nce_gradient_of_the_temperature_is_the_same_on_eight_devices(ring):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def mean(log_tau, student, teacher):
        def loss(log_tau, student, teacher):
            return info_nce(student, teacher, temperature=jnp.exp(log_tau), axis_name="data", ring=ring)

        specs = (jax.P(), jax.P("data"), jax.P("data"))
        return jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=jax.P("data"))(log_tau, student, teacher).mean()

    expected = jax.grad(lambda log_tau: info_nce(STUDENT, TEACHER, temperature=jnp.exp(log_tau)).mean())(jnp.log(TAU))
    np.testing.assert_allclose(jax.jit(jax.grad(mean))(jnp.log(TAU), STUDENT, TEACHER), expected, rtol=1e-5)


@pytest.mark.parametrize("negatives", ["teacher", "both", "symmetric"])
def test_info_nce_many_equals_info_nce_of_each_code(negatives):
    students = [STUDENT, STUDENT[:, :4], STUDENT**2]
    teachers = [TEACHER, TEACHER[:, :4] ** 2, TEACHER[:, ::-1]]
    options = {"temperature": TAU, "negatives": negatives, "where": WHERE, "labels": LABELS}
    expected = [info_nce(s, t, **options) for s, t in zip(students, teachers, strict=True)]
    np.testing.assert_allclose(info_nce_many(students, teachers, **options), np.stack(expected), atol=VALUE)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": "symetric"}, "did you mean 'symmetric'"),
        ({"temperature": 0.0}, r"`temperature` must be positive, got 0\.0"),
        ({"ring": True}, "`axis_name` must be given with ring=True"),
        ({"chunk_size": 0}, "`chunk_size` must be positive, got 0"),
        ({"where": jnp.ones((BATCH, 1), bool)}, r"`where` must have shape \[16\], .* got shape \[16, 1\]"),
        ({"labels": jnp.zeros(3, int)}, r"`labels` must have shape \[16\]"),
        ({"teacher": TEACHER[:, :3]}, r"got \[16, 6\] and \[16, 3\]"),
        ({"student": STUDENT[0], "teacher": TEACHER[0]}, r"\[batch, dim\]"),
    ],
)
def test_info_nce_rejects_invalid_arguments(arguments, message):
    valid = {"student": STUDENT, "teacher": TEACHER, "temperature": TAU}
    with pytest.raises(UserError, match=message):
        info_nce(**valid | arguments)

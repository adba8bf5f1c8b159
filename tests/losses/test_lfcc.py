"""The LFCC loss and its options, against its equation in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lfcc_jax import compact, lfcc_codes, lfcc_init, lfcc_loss, lfcc_points
from lfcc_jax.errors import UserError
from lfcc_jax.losses import info_nce, info_nce_many

BATCH = 8
RNG = np.random.default_rng(0)


def features(**stages):
    return {stage: jnp.asarray(RNG.standard_normal((BATCH, *shape)), jnp.float32) for stage, shape in stages.items()}


STUDENT = features(stage3=(14, 14, 6), stage4=(3, 5, 8), pooled=())
TEACHER = features(stage3=(14, 14, 10), stage4=(7, 7, 10))
compiled_loss = jax.jit(lfcc_loss, static_argnames=("kind", "grids", "negatives", "chunk_size", "standardize"))
CHANNELS = {"stage3": 6, "stage4": 8}, {"stage3": 10, "stage4": 10}


def params_of(width=12, **options):
    params = lfcc_init(jax.random.key(0), *CHANNELS, width, **options)
    # Biases start at zero; let a test see them.
    return jax.tree.map(lambda x: x + 0.1 if x.ndim == 1 else x, params)


def test_lfcc_loss_matches_its_equation():
    params = params_of()
    losses = []
    for stage in ("stage3", "stage4"):
        for grid in (1, 2, 4):
            if grid > min(STUDENT[stage].shape[1:3]):
                continue  # 4 does not fit into 3 x 5
            codes = []
            for network, maps in (("student", STUDENT), ("teacher", TEACHER)):
                layer = params[network][stage]["out"]
                # Projected before it is filtered: the other order than the code's.
                projected = maps[stage] @ layer["kernel"] + layer["bias"][None, None, None]
                codes.append(np.asarray(compact(projected, "gaussian", grid), np.float64).reshape(BATCH, -1))
            codes = ((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) for x in codes)
            s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in codes)
            logits = s @ t.T / 0.2
            losses.append(np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits))
    assert len(losses) == 5
    result = compiled_loss(params, STUDENT, TEACHER, kind="gaussian", temperature=0.2)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, np.mean(losses, axis=0), atol=5e-6)


@pytest.mark.parametrize(("kind", "grids"), [("box", (1, 2, 4)), ("gaussian", (4, 1, 7)), ("none", (2, 3))])
def test_lfcc_loss_of_the_teachers_points_is_that_of_its_maps(kind, grids):
    # Of stage4, the teacher has points of grids that do not fit into the student's maps of 3 x 5.
    params, marks = params_of(), jnp.arange(BATCH) != 3
    points = {stage: lfcc_points(TEACHER[stage], kind=kind, grids=grids) for stage in ("stage3", "stage4")}
    assert points["stage4"].values.shape == (BATCH, sum(grid**2 for grid in grids), 10)

    @functools.partial(jax.jit, static_argnames=("kind", "grids"))
    def results(params, teacher, **options):
        return jax.value_and_grad(lambda p, s: lfcc_loss(p, s, teacher, where=marks, **options).mean(), (0, 1))(
            params, {stage: STUDENT[stage] for stage in ("stage3", "stage4")}
        )

    of_points, of_maps = (results(params, x, kind=kind, grids=grids) for x in (points, TEACHER))
    for x, y in zip(*map(jax.tree.leaves, (of_points, of_maps)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_lfcc_points_keep_the_dtype_of_the_maps_and_the_order_of_the_grids():
    maps = {stage: TEACHER[stage].astype(jnp.bfloat16) for stage in ("stage3", "stage4")}
    points = {stage: lfcc_points(x, grids=(2, 4, 1)) for stage, x in maps.items()}
    assert points["stage3"].values.dtype == jnp.float32
    assert points["stage3"].dtype == jnp.bfloat16
    expected = compiled_loss(params_of(), STUDENT, maps, grids=(1, 2, 4))
    np.testing.assert_allclose(compiled_loss(params_of(), STUDENT, points, grids=(1, 2, 4)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ({"grids": (1, 2)}, {"grids": (1, 3)}),
        ({"grids": (1, 2)}, {"grids": (1, 2, 4)}),
        ({"kind": "box"}, {"kind": "gaussian"}),
    ],
)
def test_lfcc_points_of_others_than_the_loss_asks_for_are_an_error(made, asked):
    points = {stage: lfcc_points(TEACHER[stage], **made) for stage in ("stage3", "stage4")}
    with pytest.raises(UserError, match="stage3 of the teacher must be maps, or points of kind '.*' and grids .*, got"):
        lfcc_loss(params_of(), STUDENT, points, **asked)


def test_lfcc_points_reject_what_they_cannot_be_of():
    with pytest.raises(UserError, match="unknown kind of filter 'learned'"):
        lfcc_points(TEACHER["stage3"], kind="learned")
    with pytest.raises(UserError, match="must contain a size up to 7 for maps of 7x7, got"):
        lfcc_points(TEACHER["stage4"], grids=(8,))


def test_lfcc_points_of_tokens_are_an_error(types_unchecked):
    with pytest.raises(UserError, match=r"`maps` must have shape .*, got \[8, 49, 10\]. Reshape tokens"):
        lfcc_points(TEACHER["stage4"].reshape(8, 49, 10))


@pytest.mark.parametrize("projector", ["both", "student", "mlp"])
def test_lfcc_projectors_give_both_networks_codes_of_the_same_length(projector):
    params = params_of(projector=projector)
    student, teacher = lfcc_codes(params, STUDENT, TEACHER, grids=(1, 2))
    width = 10 if projector == "student" else 12
    assert jax.tree.map(jnp.shape, student) == jax.tree.map(jnp.shape, teacher)
    assert student["stage4/2"].shape == (BATCH, 4 * width)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    if projector == "student":
        np.testing.assert_array_equal(teacher["stage4/2"], compact(TEACHER["stage4"], "box", 2).reshape(BATCH, -1))


@pytest.mark.parametrize(("projector", "negatives"), [("both", "symmetric"), ("student", "both"), ("mlp", "teacher")])
@pytest.mark.parametrize("standardize", [False, True])
def test_lfcc_gradients_reach_all_inputs_except_the_teachers_features(projector, negatives, standardize):
    params = params_of(projector=projector)
    student = {stage: STUDENT[stage] for stage in CHANNELS[0]}

    def loss(params, student, teacher):
        return lfcc_loss(params, student, teacher, negatives=negatives, standardize=standardize).mean()

    of_params, of_student, of_teacher = jax.jit(jax.grad(loss, (0, 1, 2)))(params, student, TEACHER)
    assert not any(g.any() for g in jax.tree.leaves(of_teacher))
    # Standardization subtracts what the last bias adds.
    last_biases = [layers["out"].pop("bias") for network in of_params.values() for layers in network.values()]
    assert all(bias.any() == (not standardize) for bias in last_biases)
    assert all(g.any() for g in jax.tree.leaves((of_params, of_student)))


def test_lfcc_learned_filters_start_near_the_box_and_get_gradients():
    sizes = {"stage3": ((14, 14), (14, 14)), "stage4": ((3, 5), (7, 7))}
    params = params_of(learned_sizes=sizes)
    assert sorted(params["filters"]["student"]["stage4"]) == ["1", "2"]
    loss = lambda params, kind: compiled_loss(params, STUDENT, TEACHER, kind=kind).mean()  # noqa: E731
    # A row gives 5 % of its weight away; on noise, that is 5 % of each axis' contribution.
    np.testing.assert_allclose(loss(params, "learned"), loss(params_of(), "box"), rtol=0.1)
    grads = jax.grad(loss)(params, "learned")
    assert all(g.any() for g in jax.tree.leaves(grads["filters"]))


@pytest.mark.parametrize("kind", ["box", "dct", "none", "learned"])
def test_lfcc_codes_of_bfloat16_maps_are_float32(kind):
    sizes = {stage: (STUDENT[stage].shape[1:3], TEACHER[stage].shape[1:3]) for stage in CHANNELS[0]}
    params = params_of(learned_sizes=sizes if kind == "learned" else None)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (STUDENT, TEACHER))
    codes = lfcc_codes(params, *low, kind=kind)
    assert {x.dtype for x in jax.tree.leaves(codes)} == {jnp.dtype(jnp.float32)}
    wide = lfcc_codes(params, *jax.tree.map(lambda x: x.astype(jnp.float32), low), kind=kind)
    # The only bfloat16 rounding left is that of the filter's weights.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=0.01), codes, wide)


def cosine(a, b):
    a, b = (np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_lfcc_gradient_of_bfloat16_maps_with_a_large_mean_is_that_of_float32():
    # The mean over images is 100 times their differences: 2^-9 of it is a fifth of a difference.
    rng = np.random.default_rng(0)
    maps = [
        {"stage4": jnp.asarray(100 * rng.choice([-1, 1], c) + rng.normal(size=(32, 7, 7, c)), jnp.bfloat16)}
        for c in (24, 16)
    ]
    params = lfcc_init(jax.random.key(0), {"stage4": 24}, {"stage4": 16}, 12)

    @functools.partial(jax.jit, static_argnums=1)
    def value_and_grad(maps, rounded):
        def loss(params, maps):
            if not rounded:
                return lfcc_loss(params, *maps, grids=(2,), negatives="symmetric").mean()
            codes = jax.tree.map(lambda x: x.astype(jnp.bfloat16), lfcc_codes(params, *maps, grids=(2,)))
            codes = jax.tree.map(lambda x: x.astype(jnp.float32), codes)
            codes = [[jax.nn.standardize(x, 0, epsilon=1e-5) for x in c.values()] for c in codes]
            return info_nce_many(*codes, temperature=0.1, negatives="symmetric").mean()

        return jax.value_and_grad(loss)(params, maps)

    wide, gradient = value_and_grad(jax.tree.map(lambda x: x.astype(jnp.float32), maps), False)
    low, low_gradient = value_and_grad(maps, False)
    np.testing.assert_allclose(low, wide, atol=2e-3)
    kernels, low_kernels = ([p[n]["stage4"]["out"]["kernel"] for n in p] for p in (gradient, low_gradient))
    assert cosine(low_kernels, kernels) > 0.9999
    # Control: codes that are rounded before their mean is subtracted.
    _, rounded = value_and_grad(maps, True)
    assert cosine([rounded[n]["stage4"]["out"]["kernel"] for n in rounded], kernels) < 0.99


@pytest.mark.parametrize(("projector", "standardize"), [("both", True), ("mlp", False)])
def test_lfcc_loss_ignores_nan_in_masked_examples(projector, standardize):
    sizes = {"stage4": ((3, 5), (7, 7))}
    params = lfcc_init(
        jax.random.key(0), {"stage4": 8}, {"stage4": 10}, 12, projector=projector, learned_sizes=sizes, grids=(2,)
    )
    where = jnp.arange(BATCH) < 6
    student, teacher = ({"stage4": maps["stage4"]} for maps in (STUDENT, TEACHER))
    options = {"kind": "learned", "grids": (2,), "negatives": "symmetric", "standardize": standardize}

    def total(params, student, teacher, where):
        losses = lfcc_loss(params, student, teacher, where=where, **options)
        return losses.sum(), losses

    step = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    expected, losses = step(params, *jax.tree.map(lambda x: x[:6], (student, teacher)), None)
    for value in (jnp.nan, jnp.inf, 1e30):
        dirty = jax.tree.map(lambda x: x.at[6:].set(value), (student, teacher))  # noqa: B023
        gradients, masked = step(params, *dirty, where)
        np.testing.assert_allclose(masked[:6], losses, atol=5e-6)
        assert not masked[6:].any()
        assert not any(g[6:].any() for g in jax.tree.leaves(gradients[1]))
        gradients = gradients[0], jax.tree.map(lambda g: g[:6], gradients[1])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradients, expected)


def test_lfcc_loss_passes_masks_and_negatives_to_info_nce():
    where, labels = jnp.arange(BATCH) < 6, jnp.arange(BATCH) % 3
    student, teacher = lfcc_codes(params_of(), STUDENT, TEACHER)
    options = {"negatives": "symmetric", "where": where, "labels": labels, "chunk_size": 3}
    expected = [info_nce(student[name], teacher[name], temperature=0.1, **options) for name in student]
    result = compiled_loss(params_of(), STUDENT, TEACHER, standardize=False, **options)
    np.testing.assert_allclose(result, np.mean(expected, axis=0), atol=5e-6)
    assert not result[6:].any()


@pytest.mark.parametrize(
    ("layout", "axis_type"),
    [
        ({}, AxisType.Explicit),
        ({"axis_name": "data"}, AxisType.Explicit),
        ({"axis_name": "data", "ring": True}, AxisType.Auto),
        ({"standardize": False}, AxisType.Explicit),
        ({"axis_name": "data", "standardize": False}, AxisType.Auto),
    ],
    ids=["global", "gathered", "ring", "plain", "gathered and plain"],
)
def test_lfcc_loss_and_gradient_are_the_same_on_eight_devices(layout, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    params, student = params_of(), {stage: STUDENT[stage] for stage in CHANNELS[0]}
    loss = functools.partial(lfcc_loss, grids=(2,), **layout)
    if "axis_name" in layout:
        specs = (jax.P(), jax.P("data"), jax.P("data"))
        loss = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=jax.P("data"))

    def value_and_grad(loss, *arguments):
        return jax.jit(jax.value_and_grad(lambda *a: loss(*a).mean(), (0, 1)))(*arguments)

    on_one = functools.partial(lfcc_loss, grids=(2,), standardize=layout.get("standardize", True))
    expected = value_and_grad(on_one, params, student, TEACHER)
    with jax.set_mesh(mesh):
        split = jax.device_put((student, TEACHER), jax.NamedSharding(mesh, jax.P("data")))
        result = value_and_grad(loss, jax.device_put(params, jax.NamedSharding(mesh, jax.P())), *split)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=5e-6), result, expected)


def test_lfcc_loss_of_standardized_codes_ignores_what_all_images_share():
    params, counts = params_of(), np.arange(BATCH) < 6
    codes = lfcc_codes(params, STUDENT, TEACHER, grids=(1, 2))
    expected = []
    for name in codes[0]:
        ours, theirs = (np.asarray(c[name], np.float64)[counts] for c in codes)
        ours, theirs = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (ours, theirs))
        expected.append(info_nce(jnp.asarray(ours, jnp.float32), jnp.asarray(theirs, jnp.float32), temperature=0.1))
    result = compiled_loss(
        params, STUDENT, TEACHER, grids=(1, 2), standardize=True, temperature=0.1, where=jnp.asarray(counts)
    )
    np.testing.assert_allclose(result[:6], np.mean(expected, axis=0), atol=2e-5)

    # Offsets and scales shared by all images are ignored; the plain cosine depends mostly on them.
    def shifted(x):
        return 3 * x + 50 if x.ndim == 4 else x

    kept, plain = (
        [
            compiled_loss(params, STUDENT, teacher, grids=(1, 2), standardize=standardize)
            for teacher in (TEACHER, jax.tree.map(shifted, TEACHER))
        ]
        for standardize in (True, False)
    )
    np.testing.assert_allclose(*kept, atol=2e-3)
    assert np.abs(plain[0] - plain[1]).mean() > 0.5


def test_lfcc_codes_of_kind_none_are_samples_of_the_maps():
    params = params_of(projector="student")
    _, codes = lfcc_codes(params, STUDENT, TEACHER, kind="none", grids=(2, 3))
    x = np.asarray(TEACHER["stage3"])
    np.testing.assert_allclose(codes["stage3/2"], x[:, [3, 10]][:, :, [3, 10]].reshape(BATCH, -1), rtol=1e-6)
    np.testing.assert_allclose(codes["stage3/3"], x[:, [2, 7, 11]][:, :, [2, 7, 11]].reshape(BATCH, -1), rtol=1e-6)
    filtered = lfcc_codes(params, STUDENT, TEACHER, kind="box", grids=(2, 3))[1]
    assert not np.allclose(codes["stage3/2"], filtered["stage3/2"])


def test_lfcc_init_is_a_function_of_its_key():
    first, again, other = (lfcc_init(jax.random.key(seed), *CHANNELS, 12) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [params["student"]["stage3"]["out"]["kernel"] for params in (first, other)]
    assert not np.array_equal(*kernels)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: params_of(projector="bth"), "unknown projector 'bth'; did you mean 'both'"),
        (lambda: params_of(width=0), "`width` must be positive, got 0"),
        (
            lambda: lfcc_init(jax.random.key(0), {"stage3": jnp.ones((8, 7, 7, 6))}, {"stage3": 6}, 8),
            r"student_channels\['stage3'\] must be .* an int, got an array of shape .*; pass its last axis, 6",
        ),
        (lambda: lfcc_init(jax.random.key(0), {"stage3": 6}, {"stage4": 6}, 8), r"got \['stage3'\] and \['stage4'\]"),
        (
            lambda: lfcc_loss(params_of(), {"stage3": STUDENT["stage3"]}, TEACHER),
            "unknown stage of the student 'stage4'",
        ),
        (
            lambda: lfcc_loss(params_of(), STUDENT, TEACHER, grids=(4, 7)),
            r"`grids` must contain a size up to 3 for stage4, .* 3x5 .* got \[4, 7\]",
        ),
        (lambda: lfcc_loss(params_of(), STUDENT, TEACHER, kind="bx"), "did you mean 'box'"),
        (
            lambda: lfcc_loss(params_of(), STUDENT, TEACHER, where=jnp.ones(3, bool)),
            r"`where` must have shape \[8\]",
        ),
        (lambda: lfcc_loss(params_of(), STUDENT, TEACHER, labels=jnp.ones(1, int)), r"`labels` must have shape \[8\]"),
        (lambda: lfcc_loss(params_of(), STUDENT, TEACHER, negatives="bth"), "unknown choice of negatives 'bth'"),
        (lambda: lfcc_loss(params_of(), STUDENT, TEACHER, temperature=0.0), "`temperature` must be positive, got 0.0"),
        (lambda: lfcc_loss(params_of(), STUDENT, TEACHER, ring=True), "`axis_name` must be given with ring=True"),
        (lambda: lfcc_loss(params_of(), STUDENT, TEACHER, chunk_size=0), "`chunk_size` must be positive, got 0"),
        (
            lambda: lfcc_loss(params_of(projector="student"), STUDENT, STUDENT),
            "stage3 of the teacher must have 10 channels",
        ),
        (lambda: lfcc_loss(params_of(), STUDENT, TEACHER, kind="learned"), "pass learned_sizes to lfcc_init"),
        (lambda: params_of(learned_sizes={"stage3": ((14, 14), (14, 14))}), r"`learned_sizes` must have the stages"),
    ],
)
def test_lfcc_rejects_invalid_arguments(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (
            {"stage3": STUDENT["stage3"].reshape(BATCH, 196, 6)},
            {},
            "stage3 of the student must have shape .* Reshape tokens",
        ),
        (
            {"stage3": jnp.ones((BATCH, 6, 14, 14))},
            {},
            "stage3 of the student must have 6 channels in its last axis",
        ),
        (
            {"stage3": STUDENT["stage3"][:4]},
            {},
            "stage3 must have the same batch in both networks, got 4 maps of the student",
        ),
        ({}, {"kind": "learnd"}, "unknown kind of filter 'learnd'; did you mean 'learned'"),
    ],
)
def test_lfcc_loss_names_the_invalid_feature_map(types_unchecked, student, options, message):
    with pytest.raises(UserError, match=message):
        lfcc_loss(params_of(), STUDENT | student, TEACHER, **options)


def test_lfcc_loss_rejects_unused_learned_filters():
    params = params_of(learned_sizes={s: (STUDENT[s].shape[1:3], TEACHER[s].shape[1:3]) for s in CHANNELS[0]})
    with pytest.raises(UserError, match="`kind` must be 'learned' for params with learned filters, got 'box'"):
        lfcc_loss(params, STUDENT, TEACHER)


def test_lfcc_loss_of_a_batch_on_an_explicit_mesh_needs_no_mesh_context():
    params, expected = params_of(), compiled_loss(params_of(), STUDENT, TEACHER)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    maps = [{s: jax.device_put(f[s], split) for s in CHANNELS[0]} for f in (STUDENT, TEACHER)]
    whole = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    for loss in (lfcc_loss, jax.jit(lfcc_loss)):
        np.testing.assert_allclose(loss(whole, *maps), expected, atol=5e-6)
    jax.jit(jax.grad(lambda p: lfcc_loss(p, *maps).mean()))(whole)

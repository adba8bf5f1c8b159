import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import losses, methods, models
from lfcc_jax.errors import UserError

BATCH = {
    "image": jnp.zeros((6, 8, 8, 1)),
    "label": jnp.arange(6) % 3,
    "index": jnp.array([7, 0, 3, 9, 2, 5]),
}
# Settings for methods whose defaults are invalid or slow here.
SETTINGS = {
    "crd_bank": {"num_examples": 10, "num_negatives": 8},
    # The last maps of a CNN are of 1 x 1 here.
    "dual_view": {"stages": ("stage3",)},
    "queue": {"stages": ("stage3",), "size": 16},
}
SCALARS = ("cc", "dist", "rsd")


def output(seed, sizes, channels):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    features = {
        f"stage{s}": jax.random.normal(next(keys), (6, size, size, width))
        for s, (size, width) in enumerate(zip(sizes, channels, strict=True), start=1)
    }
    features["pooled"] = jax.random.normal(next(keys), (6, channels[-1]))
    return models.Output(jax.random.normal(next(keys), (6, 3)), features)


def teacher(seed, sizes, channels):
    kernel = jax.random.normal(jax.random.key(seed), (channels[-1], 3))
    return methods.TeacherOutput(*output(seed, sizes, channels), {"kernel": kernel, "bias": jnp.ones(3)})


# Feature maps of a CNN or Swin, and of a ViT or Mixer.
SHAPES = {"pyramid": ((8, 4, 2, 1), (4, 5, 6, 8)), "plain": ((4, 4, 4, 4), (12, 12, 12, 12))}
PAIRS = [("pyramid", "plain"), ("plain", "pyramid")]


@functools.cache
def applied(name, ours, theirs, settings=()):
    """Returns heads, student, teacher, and a compiled step: the losses, the gradients of their sum, and the memory."""
    method = methods.create(name, **(SETTINGS.get(name, {}) | dict(settings)))
    student, taught = output(0, *SHAPES[ours]), teacher(1, *SHAPES[theirs])
    variables = jax.jit(method.init)(jax.random.key(0), BATCH, student, taught)

    def total(params, student, taught, batch):
        loss, memory = method.apply(
            variables | {"params": params},
            batch,
            student,
            taught,
            mutable=[collection for collection in variables if collection != "params"],
            rngs={"dropout": jax.random.key(2)},
        )
        losses = loss if isinstance(loss, dict) else {name: loss}
        return sum(loss.sum() for loss in losses.values()), (losses, memory)

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    return variables.get("params", {}), student, taught, step


@pytest.mark.parametrize("name", methods.list_methods())
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_methods_give_finite_losses_and_gradients_for_student_and_heads_but_not_teacher(name, ours, theirs):
    params, student, taught, step = applied(name, ours, theirs)
    (_, (losses, _)), gradients = step(params, student, taught, BATCH)
    assert losses
    for loss in losses.values():
        assert loss.shape == (() if name in SCALARS else (6,))
        assert loss.dtype == jnp.float32
    for leaf in jax.tree.leaves((losses, gradients)):
        assert np.isfinite(leaf).all()
    to_heads, to_student, to_teacher = gradients
    assert max(np.abs(g).max() for g in jax.tree.leaves(to_student)) > 0
    assert max(np.abs(g).max() for g in jax.tree.leaves(to_teacher)) == 0
    idle = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(to_heads)
        if not np.abs(g).max() > 0
    ]
    # LFCC's codes are standardized, which subtracts the last bias of their projectors.
    assert [leaf for leaf in idle if not (name == "lfcc" and leaf.endswith("['out']['bias']"))] == []


@pytest.mark.parametrize("name", methods.list_methods())
def test_methods_give_float32_losses_for_bfloat16_features(name):
    params, student, taught, step = applied(name, *PAIRS[0])
    student, taught = (
        out._replace(features=jax.tree.map(lambda x: x.astype(jnp.bfloat16), out.features)) for out in (student, taught)
    )
    (_, (losses, _)), (to_heads, _, _) = jax.eval_shape(step, params, student, taught, BATCH)
    assert {x.dtype for x in jax.tree.leaves((losses, to_heads))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", [name for name in methods.list_methods() if name != "cc"])
def test_methods_are_equivariant_to_the_order_of_the_batch(name):
    params, *outputs, step = applied(name, *PAIRS[0])
    order = np.array([3, 1, 5, 0, 4, 2])
    student, taught, batch = jax.tree.map(lambda x: x[order] if x.shape[0] == 6 else x, (*outputs, BATCH))
    (_, (losses, _)), _ = step(params, *outputs, BATCH)
    (_, (shuffled, _)), _ = step(params, student, taught, batch)
    for key, loss in losses.items():
        np.testing.assert_allclose(shuffled[key], loss if name in SCALARS else loss[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ours", SHAPES)
def test_ofa_exits_of_earlier_stages_have_more_layers(ours):
    for branch in ("convolution", "attention"):
        method = methods.create("ofa", branch=branch)
        outputs = output(0, *SHAPES[ours]), teacher(1, *SHAPES["plain"])
        params = jax.eval_shape(method.init, jax.random.key(0), BATCH, *outputs)["params"]
        count = [len(jax.tree.leaves(params[stage])) for stage in ("stage1", "stage2", "stage3", "stage4")]
        assert (count[0] > count[1] > count[3]) == ((ours, branch) != ("plain", "convolution"))


def test_ofa_attention_exits_get_gradients():
    params, student, taught, step = applied("ofa", *PAIRS[1], (("branch", "attention"),))
    (_, (losses, _)), (gradient, _, _) = step(params, student, taught, BATCH)
    assert np.isfinite(losses["exits"]).all()
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize(("name", "loss"), [("fitnet", losses.fitnet), ("hcl", losses.hcl)])
def test_projection_after_resizing_gives_the_same_loss_for_less_computation(name, loss):
    rng = np.random.default_rng(0)
    ours, theirs = (jnp.asarray(rng.normal(size=(2, n, n, c)), jnp.float32) for n, c in ((16, 8), (4, 48)))
    method = methods.create(name, stages=("stage1",))
    student, taught = models.Output(None, {"stage1": ours}), methods.TeacherOutput(None, {"stage1": theirs}, {})
    variables = method.init(jax.random.key(0), {}, student, taught)

    def shrunk_first(variables):
        return method.apply(variables, {}, student, taught).sum()

    def projected_first(variables):
        return loss(ours @ variables["params"]["stage1"]["kernel"], theirs).sum()

    results = [jax.value_and_grad(f)(variables) for f in (shrunk_first, projected_first)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *results)
    operations = [
        jax.jit(jax.grad(f)).lower(variables).compile().cost_analysis()["flops"]
        for f in (shrunk_first, projected_first)
    ]
    assert operations[0] < operations[1] / 5


def test_srrl_matches_its_equation():
    params, student, taught, step = applied("srrl", *PAIRS[0])
    (_, (losses, _)), _ = step(params, student, taught, BATCH)
    x = np.asarray(student.features["pooled"] @ params["projection"]["kernel"])
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    features = np.square(x - taught.features["pooled"]).mean(axis=1)
    logits = np.square(x @ taught.head["kernel"] + 1 - taught.logits).mean(axis=1)
    np.testing.assert_allclose(losses["srrl"], features + logits, rtol=1e-4)


def test_crd_bank_updates_the_codes_of_its_batch_only():
    student, taught = output(0, *SHAPES["pyramid"]), teacher(1, *SHAPES["plain"])
    method = methods.create("crd_bank", **SETTINGS["crd_bank"])

    @jax.jit
    def step(variables):
        return method.apply(variables, BATCH, student, taught, mutable=["memory"], rngs={"dropout": jax.random.key(1)})[
            1
        ]["memory"]

    variables = method.init(jax.random.key(0), BATCH, student, taught)
    before, params = variables["memory"], variables["params"]
    memory = step(variables)
    np.testing.assert_array_equal(memory["class"], [1, -1, 1, 2, -1, 2, -1, 0, -1, 0])
    for network, out in (("student", student), ("teacher", taught)):
        codes = out.features["pooled"] @ params[network]["kernel"] + params[network]["bias"][None]
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        old, new = before[f"{network}_codes"], memory[f"{network}_codes"]
        mixed = 0.5 * old[BATCH["index"]] + 0.5 * codes
        np.testing.assert_allclose(
            new[BATCH["index"]], mixed / np.linalg.norm(mixed, axis=1, keepdims=True), rtol=1e-4, atol=1e-6
        )
        others = np.setdiff1d(np.arange(10), BATCH["index"])
        np.testing.assert_array_equal(new[others], old[others])
    # Only the first batch sets Z.
    later = step({"params": params, "memory": memory})
    for name in ("log_z_student", "log_z_teacher"):
        assert not np.isfinite(before[name])
        assert np.isfinite(memory[name])
        assert memory[name] == later[name]
    assert not np.array_equal(memory["student_codes"], later["student_codes"])


# In a memory of one entry, every drawn negative is the image itself.
@pytest.mark.parametrize(("num_examples", "seen_class"), [(1000, -1), (1000, 1), (1, -1)])
def test_crd_bank_loss_matches_its_equation(num_examples, seen_class):
    student, taught = output(0, *SHAPES["pyramid"]), teacher(1, *SHAPES["plain"])
    method = methods.create("crd_bank", num_examples=num_examples, num_negatives=7, width=4)
    batch = BATCH | {"index": jnp.minimum(BATCH["index"], num_examples - 1)}
    variables = method.init(jax.random.key(0), batch, student, taught)
    # All entries hold the same code, so it does not matter which are drawn.
    memory = {"class": jnp.full(num_examples, seen_class)} | {
        f"log_z_{network}": jnp.float32(1) for network in ("student", "teacher")
    }
    remembered = {"student": np.array([0.6, 0.0, 0.0, 0.8]), "teacher": np.array([0.0, 1.0, 0.0, 0.0])}
    memory |= {
        f"{network}_codes": jnp.tile(jnp.float32(code), (num_examples, 1)) for network, code in remembered.items()
    }
    loss, _ = method.apply(
        variables | {"memory": memory}, batch, student, taught, mutable=["memory"], rngs={"dropout": jax.random.key(1)}
    )
    expected = 0
    for network, out, other in (("student", student, "teacher"), ("teacher", taught, "student")):
        params = variables["params"][network]
        codes = np.asarray(out.features["pooled"] @ params["kernel"] + params["bias"][None], np.float64)
        score = np.exp(codes @ remembered[other] / np.linalg.norm(codes, axis=1) / 0.07 - 1)
        m, epsilon = 7 / num_examples, 1e-7
        # The image itself and images of its class are left out.
        negatives = np.where((BATCH["label"] == seen_class) | (num_examples == 1), 0, 7)
        expected -= np.log(score / (score + m + epsilon)) + negatives * np.log(m / (score + m + epsilon))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-3)


def test_kd_of_standardized_logits_is_invariant_to_their_scale():
    student, taught = output(0, *SHAPES["plain"]), teacher(1, *SHAPES["plain"])
    large = student._replace(logits=3 * student.logits)
    plain, standardized = (methods.create("kd", temperature=2.0, standardize=flag) for flag in (False, True))
    loss, of_large = (standardized.apply({}, BATCH, out, taught) for out in (student, large))
    np.testing.assert_allclose(of_large, loss, rtol=1e-4)
    loss, of_large = (plain.apply({}, BATCH, out, taught) for out in (student, large))
    assert not np.allclose(of_large, loss, rtol=1e-2)


def test_lfcc_accepts_all_options_of_its_loss():
    student, taught = output(0, *SHAPES["pyramid"]), teacher(1, *SHAPES["plain"])
    for settings in ({"kind": "learned"}, {"projector": "mlp"}, {"negatives": "both"}, {"stages": ("stage4",)}):
        method = methods.create("lfcc", **settings)
        loss, variables = jax.jit(method.init_with_output)(jax.random.key(0), BATCH, student, taught)
        assert np.isfinite(loss).all()
        assert ("filters" in variables["params"]["lfcc"]) == (settings.get("kind") == "learned")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lfc", {}, "unknown method 'lfc'; did you mean 'lfcc'? Known: at, cc, crd, crd_bank, cross_entropy, dist, "),
        ("kd", {"temprature": 2.0}, "unknown key 'temprature'; did you mean 'temperature'"),
        ("lfcc", {"stages": ("stage5",)}, "unknown stage 'stage5'; did you mean 'stage4'"),
        ("fitnet", {"stages": ("pooled",)}, "config.losses.fitnet.stages: unknown stage 'pooled'"),
        ("lfcc", {"kind": "boks"}, "config.losses.lfcc.kind must be one of 'box', .*, got 'boks'; did you mean 'box'"),
        ("kd", {"temperature": "four"}, "temperature must be a number between 0.001 and 1000, got 'four'"),
        ("kd", {"temperature": 0.0}, "config.losses.kd.temperature must be a number .*, got 0.0"),
        (
            "lfcc",
            {"grids": (1, 0)},
            "grids must be a non-empty list of distinct integers between 1 and 256, got .1, 0.",
        ),
        ("lfcc", {"grids": 4}, "config.losses.lfcc.grids must be a non-empty list .*, got 4"),
        ("fitnet", {"stages": "stage4"}, "fitnet.stages must be a non-empty list of distinct strings, got 'stage4'"),
        ("fitnet", {"stages": ()}, "config.losses.fitnet.stages must be a non-empty list of distinct strings, got .."),
        ("cross_entropy", {"label_smoothing": 1.0}, "label_smoothing must be a number in .0, 1., got 1.0"),
        (
            "ofa",
            {"branch": "convolutions"},
            "must be 'convolution' or 'attention', got 'convolutions'; did you mean 'convolution'",
        ),
    ],
)
def test_methods_reject_invalid_settings(name, settings, message):
    student, taught = output(0, *SHAPES["pyramid"]), teacher(1, *SHAPES["plain"])
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        methods.create(name, **settings).init(jax.random.key(0), BATCH, student, taught)


def test_srrl_rejects_a_teacher_without_a_linear_head():
    student, taught = output(0, *SHAPES["pyramid"]), teacher(1, *SHAPES["plain"])._replace(head={})
    with pytest.raises(UserError, match="classifier is one linear layer called 'head'"):
        methods.create("srrl").init(jax.random.key(0), BATCH, student, taught)


def test_config_path_names_the_block_of_every_method():
    for name in methods.list_methods():
        assert methods.create(name).config_path == f"config.losses.{name}"


def test_no_method_has_the_name_of_another_metric():
    assert not methods.METHODS.keys() & {"loss", "accuracy", "grad_norm", "learning_rate", "images_per_second"}


def test_for_run_sets_the_fields_that_the_run_sets():
    mesh = jax.make_mesh((8,), ("data",))
    for name in methods.list_methods():
        method = methods.create(name)
        bound = method.for_run(num_examples=20000, mesh=mesh)
        changed = {"crd_bank": {"num_examples": 20000}, "lfcc": {"mesh": mesh}}.get(name, {})
        assert tuple(changed) == method.set_by_run
        assert bound == method.clone(**changed)
        assert method.for_run() == method


def test_crd_bank_rejects_more_negatives_than_training_images():
    method = methods.create("crd_bank", num_negatives=9)
    assert method.for_run(num_examples=9).num_examples == 9
    message = "config.losses.crd_bank.num_negatives must be at most the number of training images, 8, got 9"
    with pytest.raises(UserError, match=message):
        method.for_run(num_examples=8)

"""Every method between every two kinds of network, all in one step; and on eight devices as on one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lfcc_jax import methods, models
from lfcc_jax.training import optimizer as optimizers
from lfcc_jax.training.sharding import create_mesh, replicated, to_global, weight_shardings
from lfcc_jax.training.state import init_state, trainable
from lfcc_jax.training.step import make_train_step

NETWORKS = {
    "cnn": ("resnet_pico", {"widths": (4, 4, 8, 8)}),
    "transformer": ("vit_pico", {"width": 12}),
    "mlp": ("mixer_pico", {"width": 12}),
}
# Two stages: of a CNN, one larger than those of the others, and one smaller. Fewer programs to wait for.
STAGES = {"stages": ("stage1", "stage4")}
SETTINGS = {
    "cc": {"width": 8},
    "crd": {"width": 8},
    "crd_bank": {"width": 8, "examples": 24, "draws": 16},
    "lfcc": {"width": 8, "grids": (1, 2)},
}
PAIRS = list(itertools.product(NETWORKS, NETWORKS))
# Each kind once as a student and once as a teacher; and one mesh that splits weights and CRD's memory as well.
ROUND = [("cnn", "transformer", (8, 1)), ("transformer", "mlp", (4, 2)), ("mlp", "cnn", (8, 1))]


def network(kind):
    name, overrides = NETWORKS[kind]
    return models.create(name, 10, 8, image_channels=1, **overrides)


def create(name, student):
    settings = SETTINGS.get(name, {})
    if hasattr(methods.create(name, **settings), "stages"):
        settings = settings | STAGES
    if name == "ofa":
        settings = settings | {"branch": "convolution" if student == "cnn" else "attention"}
    return methods.create(name, **settings)


@functools.cache
def one_step(student, teacher, shape):
    """Returns what is trained before a step with all methods at once, what there is after it, and the metrics."""
    losses = {name: create(name, student) for name in methods.list_methods()}
    student, teacher, mesh = network(student), network(teacher), create_mesh(*shape)
    weights = dict.fromkeys(losses, optax.constant_schedule(1.0))
    optimizer = optimizers.create("sgd", lambda _: 1e-3, momentum=0.0, nesterov=False)
    images = jnp.zeros(teacher.image_shape())
    taught = jax.jit(teacher.init)(jax.random.key(1), images)

    def init(key):
        return init_state(key, student, teacher, losses, optimizer, use_ema=False)

    placement = weight_shardings(jax.eval_shape(init, jax.random.key(0)), mesh, min_size=64)
    state = jax.jit(init, out_shardings=placement)(jax.random.key(0))
    step = make_train_step(student, teacher, losses, weights, optimizer)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8), "label": rng.integers(0, 10, 16, np.int32)}
    batch["index"] = rng.permutation(24)[:16].astype(np.int32)
    taught = jax.device_put(taught, replicated(mesh))
    after, metrics = jax.jit(step, out_shardings=(placement, replicated(mesh)))(state, taught, to_global(batch, mesh))
    return jax.device_get((trainable(state), trainable(after), after.heads, metrics))


def changed(before, after):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): not np.array_equal(x, y)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    }


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_every_method_takes_a_finite_step_that_trains_the_student_and_all_heads(student, teacher):
    before, after, heads, metrics = one_step(student, teacher, (1, 1))
    assert set(methods.list_methods()) <= set(metrics)
    for leaf in jax.tree.leaves((after, heads, metrics)):
        assert np.isfinite(leaf).all()
    assert all(changed(before["heads"], after["heads"]).values())
    still = [name for name, moved in changed(before["student"], after["student"]).items() if not moved]
    # The zero-initialised norms of a CNN's blocks hold their convolutions' first gradient back.
    assert all(student == "cnn" and "_block" in name for name in still)


@pytest.mark.parametrize(("student", "teacher", "shape"), ROUND)
def test_eight_devices_take_the_same_step_as_one(student, teacher, shape):
    _, *alone = one_step(student, teacher, (1, 1))
    _, *spread = one_step(student, teacher, shape)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))

"""Every method between pairs of network kinds, on one device and on eight."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lfcc_jax import methods, models
from lfcc_jax.methods.method import TeacherOutput
from lfcc_jax.training.sharding import create_mesh

NETWORKS = {
    "CNN": ("resnet_pico", {"widths": (4, 4, 8, 8)}),
    "hierarchical Transformer": ("swin_femto_32", {"patch": 1, "width": 4, "heads": (1, 1, 2, 2)}),
    "plain Transformer": ("vit_pico", {"width": 12}),
    "MLP": ("mixer_pico", {"width": 12}),
}
SETTINGS = {
    "cc": {"width": 8},
    "crd": {"width": 8},
    "crd_bank": {"width": 8, "num_examples": 24, "num_negatives": 16},
    # The last maps of CNNs and hierarchical Transformers are of 1 x 1 here.
    "dual_view": {"stages": ("stage2", "stage3")},
    "lfcc": {"width": 8, "grids": (1, 2)},
    "queue": {"stages": ("stage3",), "size": 24},
}
BATCH = {"label": jnp.arange(16) % 10, "index": jnp.arange(16) + 5}


def method_of(name, student):
    settings = SETTINGS.get(name, {})
    if name == "ofa":
        settings = {"branch": "convolution" if student == "CNN" else "attention"}
    return methods.create(name, **settings)


@functools.cache
def output_of(kind, seed):
    """Returns the output of a network with random weights for 16 random images."""
    name, overrides = NETWORKS[kind]
    network = models.create(name, 10, 8, image_channels=1, **overrides)
    images = jax.random.uniform(jax.random.key(0), (16, 8, 8, 1))
    variables = jax.jit(network.init)(jax.random.key(seed), images[:1])
    _, features = jax.jit(network.apply)(variables, images)
    # An MLP's classifier is initialized to zeros; a trained teacher's is not.
    kernel = jax.random.normal(jax.random.key(seed), (features["pooled"].shape[-1], 10))
    head = {"kernel": kernel, "bias": jnp.zeros(10)}
    return TeacherOutput(features["pooled"] @ kernel, features, head)


def step(teacher, student, names, devices):
    """Returns the loss of some methods, and the gradients of their sum for all heads and the student's output."""
    mesh = create_mesh(devices, 1)
    everywhere, split = NamedSharding(mesh, jax.P()), NamedSharding(mesh, jax.P("data"))
    inputs = BATCH, models.Output(*output_of(student, 2)[:2]), output_of(teacher, 1)
    each = {name: method_of(name, student) for name in names}

    def shapes():
        return {name: method.init(jax.random.key(0), *inputs) for name, method in each.items()}

    def total(heads, ours, batch, theirs):
        losses = {}
        for name, method in each.items():
            rngs = {"dropout": jax.random.key(3)}
            losses[name], _ = method.apply(heads[name], batch, ours, theirs, rngs=rngs, mutable=["memory"])
        return sum(loss.mean() for loss in jax.tree.leaves(losses)), losses

    # Random heads: compiling their initialization would take as long as all the rest.
    random = np.random.default_rng(0)
    heads = jax.tree.map(
        lambda s: (0.3 * random.standard_normal(s.shape, np.float32)).astype(s.dtype), jax.eval_shape(shapes)
    )
    heads = jax.device_put(heads, everywhere)
    batch, ours, theirs = jax.device_put(inputs, (split, split, TeacherOutput(split, split, everywhere)))
    gradients, losses = jax.jit(jax.grad(total, (0, 1), has_aux=True, allow_int=True))(heads, ours, batch, theirs)
    gradients = ({name: tree.get("params", {}) for name, tree in gradients[0].items()}, gradients[1])
    return jax.device_get((losses, gradients))


# Each network once as the teacher and once as the student, and each method between one of these pairs.
ALWAYS = tuple(zip(NETWORKS, [*list(NETWORKS)[1:], next(iter(NETWORKS))], strict=True))
# AT and KD are always among them, since others leave the maps or the logits without a gradient.
PARTS = [sorted({"at", "kd", *methods.list_methods()[i::4]}) for i in range(4)]
SOME = [pytest.param(*pair, tuple(PARTS[i]), id="-".join(pair)) for i, pair in enumerate(ALWAYS)]
ALL = [
    pytest.param(*pair, tuple(methods.list_methods()), marks=pytest.mark.exhaustive, id="-".join([*pair, "all"]))
    for pair in itertools.product(NETWORKS, NETWORKS)
]


@pytest.mark.parametrize(("teacher", "student", "names"), SOME + ALL)
def test_methods_take_the_same_step_on_one_device_and_on_eight(teacher, student, names):
    one, eight = (step(teacher, student, names, devices) for devices in (1, 8))
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(eight), strict=True):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(x).all(), where
        np.testing.assert_allclose(x, y, atol=2e-4 * max(np.abs(x).max(), 5e-2), err_msg=where)
    heads, ours = one[1]
    without_gradient = [
        jax.tree_util.keystr(path)
        for path, gradient in jax.tree_util.tree_leaves_with_path((heads, ours))
        if not np.any(gradient)
    ]
    # Standardization subtracts the last bias of LFCC's projectors.
    assert [leaf for leaf in without_gradient if "['lfcc']" not in leaf or not leaf.endswith("['out']['bias']")] == []


@pytest.mark.parametrize(("teacher", "student"), list(itertools.product(NETWORKS, NETWORKS)))
def test_methods_accept_every_pair_of_networks(teacher, student):
    inputs = BATCH, models.Output(*output_of(student, 2)[:2]), output_of(teacher, 1)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    for name in methods.list_methods():
        method = method_of(name, student)
        losses, _ = jax.eval_shape(lambda method=method: method.init_with_output(rngs, *inputs))
        for loss in jax.tree.leaves(losses):
            assert loss.shape in ((), (16,)), name

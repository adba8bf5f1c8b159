import importlib.util
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tests.models.own_networks as own
from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.models import adapters

IMAGES = jax.random.uniform(jax.random.key(3), (6, 8, 8, 1))

CASES = {
    "NNX": lambda: adapters.from_nnx(own.NNXNet(10, 1, nnx.Rngs(0))),
    "NNX, initialized": lambda: adapters.from_nnx(lambda rngs: own.NNXNet(10, 1, rngs)),
    "Equinox": lambda: adapters.from_equinox(*eqx.nn.make_with_state(own.EquinoxNet)(10, 1, jax.random.key(0))),
    "Equinox, initialized": lambda: adapters.from_equinox(
        lambda key: eqx.nn.make_with_state(own.EquinoxNet)(10, 1, key)
    ),
    "Linen": lambda: adapters.from_linen(own.LinenNet(10)),
    "function": lambda: adapters.from_function(own.tokens, own.token_params(jax.random.key(0)), prefix_tokens=1),
    "function, initialized": lambda: adapters.from_function(own.tokens, None, init=own.token_params, prefix_tokens=1),
}


def network(case):
    return CASES[case]().for_data(10, 8, 1)


def train(network, variables, images=IMAGES, key=0):
    collections = [name for name in variables if name != "params"]
    return jax.jit(
        lambda variables, images, key: network.apply(
            variables, images, True, mutable=collections, rngs={"dropout": key}
        )
    )(variables, images, jax.random.key(key))


@pytest.mark.parametrize("case", CASES)
def test_adapters_have_the_interface_of_networks(case):
    net = network(case)
    variables = jax.jit(net.init)(jax.random.key(1), IMAGES)
    shapes = net.variable_shapes()
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda s: s.shape, shapes)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(shapes["params"]))
    logits, features = net.apply(variables, IMAGES)
    assert logits.shape == (6, 10)
    info = net.feature_info()
    assert info.keys() == features.keys() == {"stage1", "stage2", "stage3", "stage4", "pooled"}
    for name, x in features.items():
        assert x.shape[-1] == info[name].channels
        assert x.ndim == (2 if name == "pooled" else 4)
    other = jax.jit(net.init)(jax.random.key(2), IMAGES)
    same = jax.tree.map(np.array_equal, variables["params"], other["params"])
    assert all(jax.tree.leaves(same)) == ("initialized" not in case and case != "Linen")


@pytest.mark.parametrize("case", CASES)
def test_training_mode_has_dropout_and_updates_collections(case):
    net = network(case)
    variables = net.init(jax.random.key(1), IMAGES)
    evaluated = [net.apply(variables, IMAGES).logits for _ in range(2)]
    np.testing.assert_array_equal(*evaluated)
    (first, collections), (again, _), (other, _) = (train(net, variables, key=key) for key in (0, 0, 1))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits, other.logits)
    if "function" not in case:
        # BatchNorm: 1 - momentum = 0.01 of the batch's mean is added to that of the first layer.
        before, after = (
            jax.tree.leaves({k: v for k, v in c.items() if k != "params"}) for c in (variables, collections)
        )
        assert [a.shape for a in after] == [b.shape for b in before]
        assert [a.dtype for a in after] == [b.dtype for b in before]
        assert any(not np.array_equal(a, b) for a, b in zip(after, before, strict=True))


def test_batch_norm_of_an_adapted_network_equals_that_of_its_library():
    module = own.NNXNet(10, 1, nnx.Rngs(0))
    net = adapters.from_nnx(module).for_data(10, 8, 1)
    variables = net.weights
    for seed in range(3):
        images = jax.random.uniform(jax.random.key(seed), IMAGES.shape)
        _, collections = train(net, variables, images)
        variables = variables | collections
        module.train()
        module(images)
    for i, norm in enumerate(module.norms):
        ours = variables["batch_stats"]["norms"][str(i)]
        np.testing.assert_allclose(ours["mean"], norm.mean.get_value(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours["var"], norm.var.get_value(), rtol=1e-5)
    module.eval()
    logits, features = module(IMAGES)
    output = net.apply(variables, IMAGES)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.features["stage4"], features["stage4"], rtol=1e-5, atol=1e-5)


def test_equinox_statistics_are_those_of_the_whole_batch():
    module, state = eqx.nn.make_with_state(own.EquinoxNet)(10, 1, jax.random.key(0))
    net = adapters.from_equinox(module, state).for_data(10, 8, 1)
    _, collections = train(net, net.weights)
    images = jnp.moveaxis(IMAGES, -1, 1)
    keys = jax.random.split(jax.random.key(0), 6)
    _, state = jax.vmap(module, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")(images, state, keys)
    for ours, theirs in zip(jax.tree.leaves(collections["state"]), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert net.apply(net.weights, IMAGES).features["stage1"].shape == (6, 8, 8, 4)  # channels last


def test_features_are_outputs_of_submodules_by_path():
    modules = {
        "NNX": adapters.from_nnx(own.NNXNet(10, 1, nnx.Rngs(0)), features={"stage1": "convs/0", "pooled": "dropout"}),
        "Linen": adapters.from_linen(own.LinenNet(10), features={"stage1": "conv1", "pooled": "Dropout_0"}),
    }
    for net in modules.values():
        net = net.for_data(10, 8, 1)
        variables = net.init(jax.random.key(0), IMAGES)
        features = net.apply(variables, IMAGES).features
        assert {name: x.shape for name, x in features.items()} == {"stage1": (6, 8, 8, 4), "pooled": (6, 8)}
        name = "convs" if "convs" in variables["params"] else "conv1"
        conv = variables["params"][name] if name == "conv1" else variables["params"]["convs"]["0"]
        dims = ("NHWC", "HWIO", "NHWC")
        expected = jax.lax.conv_general_dilated(IMAGES, conv["kernel"], (1, 1), "SAME", dimension_numbers=dims)
        np.testing.assert_allclose(features["stage1"], expected + conv["bias"][None, None, None], rtol=1e-4, atol=1e-5)


def test_tokens_are_put_on_their_grid():
    def positions(params, images):
        batch, height, width, _ = images.shape
        grid = jnp.arange(height * width, dtype=jnp.float32).reshape(1, -1, 1) * params
        registers = jnp.full((1, 5, 1), -1.0)
        return {"tokens": jnp.broadcast_to(jnp.concatenate([registers, grid], 1), (batch, 5 + height * width, 1))}

    net = adapters.from_function(positions, jnp.ones(()), prefix_tokens=5).for_data(0, 8, 1)
    (grid,) = net.apply(net.weights, IMAGES[:1]).features["tokens"]
    np.testing.assert_array_equal(grid[..., 0], np.arange(64).reshape(8, 8))
    wrong = adapters.from_function(positions, jnp.ones(()), prefix_tokens=1).for_data(0, 8, 1)
    with pytest.raises(UserError, match="has 69 tokens, which with prefix_tokens=1 leaves 68, not a square grid"):
        wrong.apply(wrong.weights, IMAGES)


def test_images_are_resized_and_normalized():
    def identity(params, images):
        return {"map": images * params}

    settings = {"mean": (0.2, 0.4, 0.6), "std": (0.5,), "input_size": 4}
    net = adapters.from_function(identity, jnp.ones(()), **settings).for_data(0, 8, 3)
    images = jnp.broadcast_to(jnp.array([0.2, 0.9, 0.1]), (2, 8, 8, 3))
    x = net.apply(net.weights, images).features["map"]
    assert x.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(x[0, 0, 0], [0, 1, -1], atol=1e-6)


def test_saved_network_and_variables_keep_their_own_settings():
    network = models.create("vit_pico", 10, 8, width=12, heads=3, image_channels=1, crop_fraction=0.9)
    net = adapters.adapt((network, jax.jit(network.init)(jax.random.key(0), IMAGES[:1])), "student")
    assert net.crop_fraction == 0.9
    assert not net.decays("pos_embed", jnp.ones((1, 5, 12)))
    np.testing.assert_array_equal(net.apply(net.weights, IMAGES).logits, network.apply(net.weights, IMAGES).logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: adapters.from_function(lambda p, x: (x, x, x), 1.0),
            "must return logits, .logits, features., or a dict",
        ),
        (lambda: adapters.from_function(lambda p, x: x, 1.0), r"logits must have shape \[batch, classes\], got \[6, 8"),
        (lambda: adapters.from_function(lambda p, x: {"a": x[0, 0, 0, 0]}, 1.0), "feature 'a' must be a map"),
        (
            lambda: adapters.from_function(lambda p, x: {"stage_1": x}, 1.0, features={"stage1": "stag_1"}),
            "unknown feature 'stag_1'; did you mean 'stage_1'",
        ),
        (lambda: adapters.from_function(lambda p, x: {}, 1.0, prefix_tokens=-1), "prefix_tokens must be at least 0"),
        (lambda: adapters.from_function(lambda p, x: {}, 1.0, std=(0.0,)), "std must be positive"),
        (lambda: adapters.from_function(lambda p, x: {}, 1.0, mean=(0.0, 1.0)), "one number or one per channel"),
        (lambda: adapters.adapt("resnet18", "config.teacher"), "config.teacher must be a Flax Linen or NNX module"),
    ],
)
def test_adapters_reject_what_does_not_fit(make, message):
    def run():
        net = make().for_data(10, 8, 1)
        return net.apply(net.weights, IMAGES)

    with pytest.raises(UserError, match=message):
        run()


KERAS = """
import keras, jax, numpy as np
from lfcc_jax import models
from lfcc_jax.models import adapters

keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])  # takes the first of Keras's numbers
layers = [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, padding="same", name="conv")]
layers += [keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(name="pool")]
model = keras.Sequential([*layers, keras.layers.Dropout(0.5), keras.layers.Dense(10)])
images = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
net = adapters.from_keras(model, features={"stage1": "conv", "pooled": "pool"}).for_data(10, 8, 1)
output = net.apply(net.weights, images)
np.testing.assert_allclose(output.logits, model(images, training=False), rtol=1e-5, atol=1e-6)
assert {name: x.shape for name, x in output.features.items()} == {"stage1": (6, 8, 8, 4), "pooled": (6, 4)}
apply = jax.jit(lambda v, x: net.apply(v, x, True, mutable=["non_trainable"], rngs={"dropout": jax.random.key(0)}))
first, collections = apply(net.weights, images)
second, _ = apply(net.weights | collections, images)
assert not np.allclose(first.logits, second.logits)  # dropout, whose seed is in the collection
statistics = collections["non_trainable"]["sequential"]["batch_normalization"]
expected = 0.01 * np.mean(output.features["stage1"], (0, 1, 2))
np.testing.assert_allclose(statistics["moving_mean"], expected, rtol=1e-3, atol=1e-6)
embedding = adapters.from_keras(model, features={"pooled": "pool"}, logits=False).for_data(0, 8, 1)
assert embedding.apply(embedding.weights, images).logits is None
print("done")
"""


def test_keras_model_is_adapted():
    if importlib.util.find_spec("keras") is None:  # importing it here would choose its backend
        pytest.skip("keras is not installed")
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", KERAS], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr

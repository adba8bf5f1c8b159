import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.errors import UserError

NAMES = models.list_models()


def small(name, **overrides):
    widths = {"widths": (4, 4, 8, 8)} if name.startswith("resnet") else {"width": 12}
    return models.create(name, num_classes=5, image_size=8, image_channels=1, **(widths | overrides))


def images(seed=0, batch=4):
    return jax.random.uniform(jax.random.key(seed), (batch, 8, 8, 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_network_returns_logits_and_the_features_it_announces(name):
    model = small(name)
    variables = model.init(jax.random.key(0), images())
    logits, features = model.apply(variables, images(), train=False)
    assert logits.shape == (4, 5)
    assert logits.dtype == jnp.float32
    assert set(features) == {"stage1", "stage2", "stage3", "stage4", "pooled"}
    for key, info in model.feature_info().items():
        expected = (4, info.channels) if key == "pooled" else (4, *info)
        assert features[key].shape == expected


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_variables_are_known_before_anything_runs(name):
    model = small(name)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.variable_shapes())
    made = jax.tree.map(lambda x: (x.shape, x.dtype), model.init(jax.random.key(0), images()))
    assert shapes == made


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights_and_logits(name):
    model = small(name, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), images())
    logits, features = model.apply(variables, images())
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in features.values()} == {jnp.dtype("bfloat16")}
    reference, _ = small(name).apply(variables, images())
    np.testing.assert_allclose(logits, reference, atol=0.05 * float(jnp.abs(reference).max()) + 0.01)


@pytest.mark.parametrize("name", ["resnet_pico", "vit_pico", "mixer_pico"])
def test_dropout_acts_in_training_only(name):
    model = small(name, dropout=0.5)
    variables = model.init(jax.random.key(0), images())

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images(), train=True, rngs=rngs, mutable=["batch_stats"])[0].logits

    assert not np.array_equal(train(0), train(1))
    np.testing.assert_array_equal(train(0), train(0))
    np.testing.assert_array_equal(model.apply(variables, images()).logits, model.apply(variables, images()).logits)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_examples():
    drop = models.network.DropPath(0.25)
    x = jnp.ones((4000, 3))
    y = np.asarray(drop.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y == y[:, :1]).all()
    # The standard error of the mean of 4,000 Bernoulli(0.75) / 0.75 is 0.009.
    assert abs(y.mean() - 1) < 4 * 0.0092
    np.testing.assert_array_equal(drop.apply({}, x, False), x)


@pytest.mark.parametrize("name", NAMES)
def test_one_image_does_not_change_what_another_gives(name):
    model = small(name)
    variables = model.init(jax.random.key(0), images())
    changed = images().at[0].set(0.0)
    before, after = model.apply(variables, images()), model.apply(variables, changed)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(x[1:], y[1:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(before.logits[0], after.logits[0])


def test_each_network_normalises_with_its_own_constants():
    plain = small("resnet_pico", mean=(0.0,), std=(1.0,))
    normalising = small("resnet_pico", mean=(0.3,), std=(0.2,))
    variables = plain.init(jax.random.key(0), images())
    expected = plain.apply(variables, (images() - 0.3) / 0.2).logits
    np.testing.assert_allclose(normalising.apply(variables, images()).logits, expected, rtol=1e-5, atol=1e-6)


def test_tokens_are_put_back_where_their_patches_were():
    model = small("vit_pico", depth=4)
    variables = model.init(jax.random.key(0), images())
    # With attention and MLP silenced, a token is its patch's embedding and position.
    silent = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "block" in path[1].key and path[-2].key in ("proj", "fc2") else x,
        variables,
    )
    moved = jnp.zeros((1, 8, 8, 1)).at[0, 2:4, 6:8].set(1.0)
    change = model.apply(silent, moved).features["stage4"] - model.apply(silent, 0 * moved).features["stage4"]
    rows, columns = np.nonzero(np.abs(change[0]).sum(-1))
    assert (set(rows), set(columns)) == ({1}, {3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_nana"}, "unknown network 'vit_nana'; did you mean 'vit_nano'"),
        ({"name": "vit_pico", "dropuot": 0.1}, "unknown key 'dropuot'; did you mean 'dropout'"),
        ({"name": "vit_pico", "patch": 3}, "patches of 3 pixels do not divide"),
        ({"name": "mixer_pico", "patch": 3}, "patches of 3 pixels do not divide"),
    ],
)
def test_what_cannot_work_is_said(arguments, message):
    with pytest.raises(UserError, match=message):
        models.create(num_classes=5, image_size=8, **arguments).variable_shapes()

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.arguments import signature
from lfcc_jax.errors import UserError
from lfcc_jax.models.layers import DropPath
from lfcc_jax.models.stack import drop_path_rates

# Every family and kind of block, small enough to compile in a moment.
SMALL = {
    "convnext_pico_32": {"patch": 1, "widths": (4, 4, 8, 8), "depths": (1, 1, 2, 1)},
    "convnextv2_atto": {"widths": (4, 4, 8, 8), "depths": (1, 1, 1, 1), "patch": 1, "mean": (0.5,), "std": (0.5,)},
    "mixer_pico": {"width": 12},
    "mobilenetv2_050_32": {"multiplier": 0.25},
    "resmlp_nano_32": {"patch": 2, "width": 12, "depth": 4},
    "resnet_pico": {"widths": (4, 4, 8, 8)},
    "resnet50": {"widths": (8, 8, 16, 16), "stem_width": 4, "blocks": (1, 1, 1, 1), "mean": (0.5,), "std": (0.5,)},
    "swin_femto_32": {"patch": 1, "width": 4, "heads": (1, 1, 2, 2)},
    "vit_pico": {"width": 12},
    "vit_small_patch16_dinov3": {
        "patch": 2,
        "width": 12,
        "heads": 3,
        "depth": 4,
        "taps": (),
        "layer_scale": 0.5,
        "mean": (0.5,),
        "std": (0.5,),
    },
}
NAMES = list(SMALL)


def small(name, **overrides):
    return models.create(name, num_classes=5, image_size=8, image_channels=1, **(SMALL[name] | overrides))


@functools.cache
def variables_of(name):
    """Returns initial variables with a random classifier: some start at zero, and would hide everything before them."""
    variables = jax.jit(small(name).init)(jax.random.key(0), images())
    head = variables["params"]["head"]
    head = head | {"kernel": jax.random.normal(jax.random.key(7), head["kernel"].shape)}
    return variables | {"params": variables["params"] | {"head": head}}


@functools.cache
def applied(name, **overrides):
    """Returns the compiled function of a network, compiled once for all tests."""
    return jax.jit(small(name, **overrides).apply)


def images(seed=0, batch=4):
    return jax.random.uniform(jax.random.key(seed), (batch, 8, 8, 1))


@pytest.mark.parametrize("name", NAMES)
def test_networks_return_logits_and_the_features_of_feature_info(name):
    model = small(name)
    logits, features = applied(name)(variables_of(name), images())
    assert logits.shape == (4, 5)
    assert logits.dtype == jnp.float32
    assert set(features) == {"stage1", "stage2", "stage3", "stage4", "pooled"}
    for key, info in model.feature_info().items():
        expected = (4, info.channels) if key == "pooled" else (4, *info)
        assert features[key].shape == expected


@pytest.mark.parametrize("name", NAMES)
def test_variable_shapes_are_those_of_init(name):
    model = small(name)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.variable_shapes())
    made = jax.tree.map(lambda x: (x.shape, x.dtype), variables_of(name))
    assert shapes == made


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_networks_keep_float32_weights_and_logits(name):
    model = small(name, dtype=jnp.bfloat16)
    logits, features = applied(name, dtype=jnp.bfloat16)(variables_of(name), images())
    assert {x.dtype for x in jax.tree.leaves(model.variable_shapes())} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in features.values()} == {jnp.dtype("bfloat16")}
    reference, _ = applied(name)(variables_of(name), images())
    error = jnp.linalg.norm(logits - reference) / jnp.linalg.norm(reference)
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_bfloat16_network_are_computed_in_float32(name):
    variables = variables_of(name)
    logits, features = applied(name, dtype=jnp.bfloat16)(variables, images())
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["head"])
    expected = np.asarray(features["pooled"], np.float64) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    # A bfloat16 layer is not within that tolerance.
    assert np.abs(np.asarray(logits.astype(jnp.bfloat16), np.float64) - expected).max() > 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_active_in_training_only(name):
    model = small(name, dropout=0.5)
    variables = variables_of(name)

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images(), train=True, rngs=rngs, mutable=["batch_stats"])[0].logits

    assert not np.array_equal(train(0), train(1))
    np.testing.assert_array_equal(train(0), train(0))
    evaluated = jax.jit(model.apply)(variables, images()).logits
    np.testing.assert_array_equal(evaluated, applied(name)(variables, images()).logits)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_examples():
    drop = DropPath()
    x = jnp.ones((4000, 3))
    y = np.asarray(drop.apply({}, x, 0.25, True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y == y[:, :1]).all()
    # The standard error of the mean of 4,000 Bernoulli(0.75) / 0.75 is 0.009.
    assert abs(y.mean() - 1) < 4 * 0.0092
    np.testing.assert_array_equal(drop.apply({}, x, 0.25, False), x)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_an_image_do_not_depend_on_the_rest_of_the_batch(name):
    changed = images().at[0].set(0.0)
    before, after = (applied(name)(variables_of(name), x) for x in (images(), changed))
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(x[1:], y[1:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(before.logits[0], after.logits[0])


def test_networks_normalize_with_their_own_constants():
    plain = small("resnet_pico", mean=(0.0,), std=(1.0,))
    normalizing = small("resnet_pico", mean=(0.3,), std=(0.2,))
    variables = jax.jit(plain.init)(jax.random.key(0), images())
    expected = jax.jit(plain.apply)(variables, (images() - 0.3) / 0.2).logits
    actual = jax.jit(normalizing.apply)(variables, images()).logits
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_token_features_are_at_the_positions_of_their_patches():
    model = small("vit_pico", depth=4)
    apply, variables = jax.jit(model.apply), jax.jit(model.init)(jax.random.key(0), images())
    # With attention and MLP silenced, a token is its patch's embedding and position.
    silent = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if path[-2].key in ("proj", "fc2") else x,
        variables,
    )
    moved = jnp.zeros((1, 8, 8, 1)).at[0, 2:4, 6:8].set(1.0)
    change = apply(silent, moved).features["stage4"] - apply(silent, 0 * moved).features["stage4"]
    rows, columns = np.nonzero(np.abs(change[0]).sum(-1))
    assert (set(rows), set(columns)) == ({1}, {3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_nana"}, "unknown network 'vit_nana'; did you mean 'vit_nano'"),
        ({"name": "vit_pico", "dropuot": 0.1}, "unknown key 'dropuot'; did you mean 'dropout'"),
        ({"name": "vit_pico", "patch": 3}, "patch must divide the image size, got patch=3"),
        ({"name": "mixer_pico", "patch": 3}, "patch must divide the image size, got patch=3"),
        ({"name": "swin_femto_32", "patch": 3}, "patch must divide the image size, got patch=3"),
        ({"name": "swin_femto_32", "depths": (2, 2, 3, 2)}, r"depths must be even.* got \(2, 2, 3, 2\)"),
        ({"name": "swin_femto_32", "heads": (5, 2, 4, 8)}, "heads must divide the width of stage 1, 24, got 5"),
        ({"name": "vit_pico", "heads": 5}, "heads must divide width=48, got 5"),
        (
            {"name": "vit_pico", "positions": "rotary", "heads": 8},
            "width / heads must be a multiple of 4 with rotary positions, got 48 / 8",
        ),
        (
            {"name": "vit_pico", "pooling": "atention"},
            "pooling must be one of 'token', 'mean', 'attention', got 'atention'; did you mean 'attention'",
        ),
        ({"name": "vit_pico", "taps": (1, 2, 3, 5)}, "that end at depth=4"),
        ({"name": "convnext_tiny"}, "images are too small: stage3_down_conv needs maps of at least 2 x 2, got 1 x 1"),
        ({"name": "convnext_pico_32", "patch": 16}, "stem_conv needs maps of at least 16 x 16, got 8 x 8"),
        ({"name": "vit_pico", "mlp_ratio": 0.01}, "the hidden width of an MLP must be positive, got 0"),
        ({"name": "mixer_pico", "token_ratio": 0.01}, "the hidden width of an MLP must be positive, got 0"),
        (
            {"name": "resnet50", "widths": (6, 8, 16, 32)},
            r"widths of bottleneck blocks must be multiples of 4, got \(6,",
        ),
        (
            {"name": "vit_pico", "taps": (1, 2, 3)},
            r"taps must be a list of 0 or 4 integers between 1 and 512, got \(1, 2, 3\)",
        ),
        (
            {"name": "resnet18", "block": "bottelneck"},
            "resnet18.block must be 'basic' or 'bottleneck', got 'bottelneck'",
        ),
        (
            {"name": "resnet18", "image_channels": 1},
            "mean and std must have one number or one per channel, of which there are 1, got mean=",
        ),
        (
            {"name": "vit_pico", "num_classes": -1},
            "vit_pico.num_classes must be an integer between 0 and 10000000, got -1",
        ),
        ({"name": "vit_pico", "image_size": -8}, "vit_pico.image_size must be an integer between 1 and 8192, got -8"),
        ({"name": "vit_pico", "drop_path": 1.0}, r"vit_pico.drop_path must be a number in \[0, 1\), got 1.0"),
        ({"name": "vit_pico", "mean": 0.5}, r"mean must be a non-empty list of numbers in \[0, 1\], got 0.5"),
        (
            {"name": "vit_pico", "std": (0.0,)},
            r"vit_pico.std must be a non-empty list of positive numbers, got \(0.0,\)",
        ),
        ({"name": "vit_pico", "crop_fraction": 7}, "vit_pico.crop_fraction must be a positive number up to 1, got 7"),
        ({"name": "vit_pico", "interpolation": "bicubik"}, "must be 'bilinear' or 'bicubic', got 'bicubik'"),
        ({"name": "swin_femto_32", "depths": (2, 2, 2)}, "swin_femto_32.depths must be a list of 4 integers between"),
        ({"name": "vit_pico", "width": -48}, "vit_pico.width must be an integer between 1 and 16384, got -48"),
        ({"name": "vit_pico", "dtype": "float99"}, "dtype must be 'float32', 'bfloat16' or 'float64', got 'float99'"),
        ({"name": []}, r"name must be a string, got \[\]"),
        ({"name": "swin_tniy"}, "unknown network 'swin_tniy'; did you mean 'swin_tiny'"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_networks_reject_invalid_fields(arguments, message):
    with pytest.raises(UserError, match=message):
        models.create(**{"num_classes": 5, "image_size": 8} | arguments).variable_shapes()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.ones((1, 8, 8, 3), jnp.uint8), r"images must be floats in \[0, 1\], got uint8; divide by 255"),
        (jnp.ones((1, 3, 8, 8)), r"images must have shape \[batch, height, width, 3\], got \[1, 3, 8, 8\]"),
        (jnp.ones((8, 8, 3)), r"got \[8, 8, 3\]"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_networks_reject_images_of_another_shape_or_dtype(images, message):
    with pytest.raises(UserError, match=message):
        models.create("resnet_pico", 5, 8).init(jax.random.key(0), images)


def test_networks_without_a_default_image_size_require_one():
    with pytest.raises(UserError, match="network 'vit_pico' has no default image size: set image_size"):
        models.create("vit_pico", 10)


# Measured with timm 0.6.5, at 1000 and at 100 classes.
PARAMETERS = {
    "resnet18": (11_689_512, 11_227_812),
    "mobilenetv2_100": (3_504_872, 2_351_972),
    "resnet50": (25_557_032, 23_712_932),
    "convnext_tiny": (28_589_128, 27_897_028),
    "deit_tiny": (5_717_416, 5_543_716),
    "vit_small": (22_050_664, 21_704_164),
    "swin_tiny": (28_288_354, 27_596_254),
    "swin_nano": (9_599_940, 9_138_240),
    "swin_pico": (5_506_996, 5_160_496),
    "mixer_b16": (59_880_472, 59_188_372),
    "resmlp_12": (15_350_872, 15_004_372),
    # Measured with timm 1.0.31.
    "convnextv2_atto": (3_708_400, 3_419_500),
    "convnextv2_nano": (15_623_800, 15_046_900),
    "efficientnet_b0": (5_288_548, 4_135_648),
    "mobilenetv3_large_100": (5_483_032, 4_330_132),
    "vit_small_patch14_dinov2": (22_441_192, 22_094_692),
    "vit_large_patch14_reg4_dinov2": (305_395_688, 304_473_188),
    "vit_small_patch16_dinov3": (21_971_944, 21_625_444),
    "vit_base_patch16_siglip_224": (93_653_224, 92_961_124),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_number_of_parameters(name):
    for classes, expected in zip((1000, 100), PARAMETERS[name], strict=True):
        shapes = models.create(name, classes).variable_shapes()["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


# Side and channels of the benchmark's four stages at 224 pixels, and channels of the pooled vector.
STAGES = {
    "resnet18": ((56, 64), (28, 128), (14, 256), (7, 512), 512),
    "resnet50": ((56, 256), (28, 512), (14, 1024), (7, 2048), 2048),
    "mobilenetv2_100": ((56, 24), (28, 32), (14, 96), (7, 1280), 1280),
    "convnext_tiny": ((56, 96), (28, 192), (14, 384), (7, 768), 768),
    "efficientnet_b0": ((56, 24), (28, 40), (14, 112), (7, 1280), 1280),
    "mobilenetv3_large_100": ((56, 24), (28, 40), (14, 112), (7, 960), 1280),
    "deit_tiny": ((14, 192),) * 4 + (192,),
    "vit_small": ((14, 384),) * 4 + (384,),
    "mixer_b16": ((14, 768),) * 4 + (768,),
    "resmlp_12": ((14, 384),) * 4 + (384,),
    "swin_tiny": ((56, 96), (28, 192), (14, 384), (7, 768), 768),
    "swin_nano": ((56, 64), (28, 128), (14, 256), (7, 512), 512),
    "swin_pico": ((56, 48), (28, 96), (14, 192), (7, 384), 384),
    "vit_small_patch14_reg4_dinov2": ((37, 384),) * 4 + (384,),
    "vit_base_patch16_dinov3": ((16, 768),) * 4 + (768,),
    "vit_base_patch16_siglip_224": ((14, 768),) * 4 + (768,),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_sizes_of_the_benchmark(name):
    info = models.create(name, 10).feature_info()
    *stages, width = STAGES[name]
    assert [info[f"stage{s}"] for s in (1, 2, 3, 4)] == [(n, n, channels) for n, channels in stages]
    assert info["pooled"] == (1, 1, width)
    if info["stage1"] == info["stage4"]:
        assert models.create(name, 10).taps == (2, 4, 10, 12)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("vit_pico", "scan"),
        ("vit_pico", "remat"),
        ("swin_femto_32", "scan"),  # two kinds of blocks
        pytest.param("swin_femto_32", "remat", marks=pytest.mark.exhaustive),
        pytest.param("convnext_pico_32", "scan", marks=pytest.mark.exhaustive),
        pytest.param("convnext_pico_32", "remat", marks=pytest.mark.exhaustive),
    ],
)
def test_scan_and_remat_do_not_change_gradients(name, option):
    def gradient(**overrides):
        model = small(name, drop_path=0.2, **overrides)
        variables = variables_of(name)

        def loss(params):
            output = model.apply(
                variables | {"params": params}, images(), train=True, rngs={"dropout": jax.random.key(1)}
            )
            return jnp.square(output.logits).mean() + jnp.square(output.features["stage3"]).mean()

        return jax.jit(jax.grad(loss))(variables["params"])

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * max(float(jnp.abs(x).max()), 1e-3)),
        gradient(),
        gradient(**{option: True}),
    )


def test_remat_does_not_change_batch_norm_networks():
    outputs = []
    for remat in (False, True):
        model = small("resnet_pico", remat=remat)
        in_training = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
        outputs.append(in_training(variables_of("resnet_pico"), images()))
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_stacked_blocks_have_different_initial_weights():
    kernel = variables_of("vit_pico")["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (4, 12, 48)
    assert not np.array_equal(kernel[0], kernel[1])


def test_drop_path_rates_grow_from_zero():
    assert drop_path_rates(0.3, 4) == pytest.approx((0.0, 0.1, 0.2, 0.3))
    assert drop_path_rates(0.3, 1) == (0.0,)
    model = small("vit_pico", drop_path=0.9)
    variables = variables_of("vit_pico")

    def train(seed):
        return model.apply(variables, images(), train=True, rngs={"dropout": jax.random.key(seed)}).features

    first, second = train(0), train(1)
    np.testing.assert_array_equal(first["stage1"], second["stage1"])
    assert not np.array_equal(first["stage4"], second["stage4"])


# Parameters with PyTorch's default initialization in timm, and the bound of the uniform distribution.
UNIFORM = [
    ("resnet18", ("head", "kernel"), 512**-0.5),
    ("resnet18", ("head", "bias"), 512**-0.5),
    ("mobilenetv2_100", ("head", "kernel"), 1000**-0.5),
    ("swin_pico", ("patch_embed", "kernel"), 48**-0.5),
    ("swin_pico", ("patch_embed", "bias"), 48**-0.5),
    ("deit_tiny", ("patch_embed", "kernel"), 768**-0.5),
    ("deit_tiny", ("patch_embed", "bias"), 768**-0.5),
]
# Parameters with Kaiming fan-out initialization, an untruncated normal distribution, and its std.
NORMAL = [
    ("resnet18", ("stage1_block0", "conv1", "kernel"), (2 / (9 * 64)) ** 0.5),
    ("resnet18", ("stem_conv", "kernel"), (2 / (49 * 64)) ** 0.5),
    ("mobilenetv2_100", ("group1_block0", "expand_conv", "kernel"), (2 / 96) ** 0.5),
    ("mobilenetv2_100", ("group5_block1", "depthwise_conv", "kernel"), (2 / 9) ** 0.5),
]


def initial_values(name, path):
    """Returns the initial value of one parameter."""
    model = models.create(name, 1000, image_size=32)

    @jax.jit
    def init(key):
        return functools.reduce(lambda tree, key: tree[key], path, model.init(key, jnp.zeros((1, 32, 32, 3)))["params"])

    return np.asarray(init(jax.random.key(0)), np.float64)


@pytest.mark.parametrize(("name", "path", "bound"), UNIFORM)
def test_initial_values_are_uniform_as_in_timm(name, path, bound):
    x = initial_values(name, path)
    assert np.abs(x).max() <= bound
    # The standard error of the mean is std / sqrt(n); that of the deviation of a uniform variable is 0.45 of it.
    std = bound / 3**0.5
    assert abs(x.mean()) < 5 * std / x.size**0.5
    assert abs(x.std() - std) < 5 * 0.45 * std / x.size**0.5


@pytest.mark.parametrize(("name", "path", "std"), NORMAL)
def test_initial_values_are_normal_as_in_timm(name, path, std):
    x = initial_values(name, path)
    assert abs(x.mean()) < 5 * std / x.size**0.5
    assert abs(x.std() - std) < 5 * std / (2 * x.size) ** 0.5
    # Truncation at two standard deviations, the usual one, leaves nothing beyond 2.28 of the distribution's own.
    assert np.abs(x).max() > 2.5 * std


@pytest.mark.parametrize("name", NAMES)
def test_networks_state_a_family_and_only_free_fields_that_exist(name):
    network = small(name)
    assert models.family(name) == network.family
    assert network.family in ("cnn", "transformer", "mlp")
    assert network.free_fields <= set(signature(type(network)))


def test_small_variants_are_valid_and_small():
    for name in models.list_models():
        if (fields := models.variant(name).small) is not None:
            params = models.create(name, 10, 64, **fields).variable_shapes()["params"]
            assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 1_500_000, name


def test_family_rejects_an_unknown_name():
    with pytest.raises(UserError, match="unknown network 'resnet_18'; did you mean 'resnet18'"):
        models.family("resnet_18")

"""Layers that compute a standard operation in another way, against the standard one."""

import contextlib
import re

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax._src.cudnn import fused_attention_stablehlo

from lfcc_jax import models
from lfcc_jax.models import attention, convolution, layers


def value_and_gradients(function, *arguments):
    """Returns a function's value, and the gradients of its product with fixed noise."""

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(y * jax.random.normal(jax.random.key(9), y.shape)), y

    gradients, y = jax.jit(jax.grad(loss, tuple(range(len(arguments))), has_aux=True))(*arguments)
    return y, gradients


def assert_equal_to(expected, actual, tolerance=1e-6):
    """Compares trees of arrays; errors are relative to the largest value of an array."""
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * np.abs(x).max())


def test_gelu_equals_the_exact_formula_forward_and_backward():
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    wide = x.astype(np.float64)
    cdf = 0.5 * (1 + scipy.special.erf(wide / np.sqrt(2)))
    density = np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), wide * cdf, rtol=0, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(x), cdf + wide * density, rtol=0, atol=1e-6)
    # The approximation by tanh is not within that tolerance.
    assert np.abs(jax.nn.gelu(x, approximate=True) - wide * cdf).max() > 1e-4


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-6, 6, 1001, dtype=jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    exact = wide * 0.5 * (1 + scipy.special.erf(wide / np.sqrt(2)))
    y = layers.gelu(x)
    assert y.dtype == jnp.bfloat16
    # Half a unit in the last of 8 bits is 2^-9 of the value; below -3, float32 cancels in 1 + erf.
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 11)])
@pytest.mark.parametrize("size", [2, 4])
def test_patch_conv_equals_a_strided_convolution(size, height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    bias_init = nn.initializers.normal(1.0)
    settings = {"kernel_init": nn.initializers.lecun_normal(), "bias_init": bias_init}
    ours = convolution.PatchConv(5, size, **settings)
    plain = nn.Conv(5, (size, size), size, "VALID", **settings)
    variables = plain.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, ours.init(jax.random.key(1), x))
    assert_equal_to(value_and_gradients(plain.apply, variables, x), value_and_gradients(ours.apply, variables, x))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 16), (5, 7), (1, 1)])
def test_stem_conv_equals_a_7x7_convolution_with_stride_2(height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    ours, plain = convolution.StemConv(5), convolution.conv(5, 7, 2, dtype=jnp.float32, name=None)
    variables = plain.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, ours.init(jax.random.key(1), x))
    assert_equal_to(value_and_gradients(plain.apply, variables, x), value_and_gradients(ours.apply, variables, x))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 5), (3, 3), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "groups"), [(1, 1), (3, 1), (1, 6), (3, 6), (5, 6), (7, 6)])
def test_conv_equals_flax_forward_and_backward(size, groups, stride, height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 6))
    init = {"kernel_init": nn.initializers.lecun_normal()}
    ours = convolution.Conv(6, size, stride, groups > 1, use_bias=True, **init)
    padding = [(size // 2, size // 2)] * 2
    plain = nn.Conv(6, (size, size), stride, padding, feature_group_count=groups, **init)
    variables = plain.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, ours.init(jax.random.key(1), x))
    assert_equal_to(value_and_gradients(plain.apply, variables, x), value_and_gradients(ours.apply, variables, x))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 5), (2, 3), (1, 1)])
def test_max_pool_equals_flax_forward_and_backward(height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    x = jnp.round(4 * x) / 4  # with equal values in a window
    plain = lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # noqa: E731
    for ours in (convolution.max_pool, convolution.max_pool_by_shifts):
        assert_equal_to(value_and_gradients(plain, x), value_and_gradients(ours, x))


def test_depthwise_convolution_is_a_convolution_except_on_a_cpu():
    x, conv = jnp.ones((2, 8, 8, 4)), convolution.Conv(4, 3, depthwise=True)
    variables = conv.init(jax.random.key(0), x)
    traced = jax.jit(jax.grad(lambda v: conv.apply(v, x).sum())).trace(variables)
    counts = {name: traced.lower(lowering_platforms=(name,)).as_text().count("convolution") for name in ("cpu", "tpu")}
    assert counts["cpu"] == 0 < counts["tpu"]


def test_pointwise_convolution_is_a_product_except_with_the_norm_of_evaluation_on_a_gpu():
    x, layer = jnp.ones((2, 8, 8, 4)), convolution.conv(4, 1, dtype=jnp.float32)
    counts = {}
    for train in (True, False):
        module = ConvolutionAndNorm(layer, train, True)
        variables = module.init(jax.random.key(0), x)
        traced = jax.jit(lambda v, module=module: module.apply(v, x, mutable=["batch_stats"])[0]).trace(variables)
        for name in ("cpu", "cuda", "tpu"):
            counts[name, train] = traced.lower(lowering_platforms=(name,)).as_text().count("stablehlo.convolution")
    assert counts == {(name, train): int(name == "cuda" and not train) for name, train in counts}


@pytest.mark.parametrize("ours", [convolution.PatchConv(5, 2, nn.initializers.lecun_normal()), convolution.StemConv(5)])
def test_control_a_transposed_kernel_exceeds_the_tolerance(ours):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = ours.init(jax.random.key(1), x)
    transposed = jax.tree.map(lambda v: v.swapaxes(0, 1) if v.ndim == 4 else v, variables)
    with pytest.raises(AssertionError):
        assert_equal_to(ours.apply(variables, x), ours.apply(transposed, x))


@pytest.mark.parametrize(
    "ours",
    [
        convolution.PatchConv(5, 2, nn.initializers.lecun_normal(), dtype=jnp.bfloat16),
        convolution.StemConv(5, jnp.bfloat16),
        convolution.Conv(3, 7, depthwise=True, use_bias=True, dtype=jnp.bfloat16),
        convolution.Conv(5, 1, dtype=jnp.bfloat16),
    ],
)
def test_convolutions_in_bfloat16_keep_float32_parameters(ours):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = ours.init(jax.random.key(1), x)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y = ours.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    assert_equal_to(ours.clone(dtype=jnp.float32).apply(variables, x), y.astype(jnp.float32), tolerance=2**-6)


def normalized(x, axes):
    """Returns `x` with zero mean and unit variance over some axes, in float64, and both of them."""
    x = np.asarray(x, np.float64)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5), mean.squeeze(), variance.squeeze()


def at_mean_100(shape):
    return jax.random.normal(jax.random.key(0), shape) * 0.1 + 100


def test_layer_norm_is_exact_at_a_large_mean():
    x = at_mean_100((16, 64))
    expected, _, _ = normalized(x, -1)

    def error(module):
        return np.abs(module.apply(module.init(jax.random.key(0), x), x) - expected).max()

    # The spacing of float32 numbers at 100 is 7.6e-6, or 7.6e-5 deviations.
    assert error(layers.LayerNorm(1e-5)) < 3e-4
    assert error(nn.LayerNorm(epsilon=1e-5)) > 0.1


def test_layer_norm_equals_flax_forward_and_backward():
    # The first channel is an outlier of a hundred deviations.
    x = (2 * jax.random.normal(jax.random.key(0), (8, 16)) + 1).at[:, 0].add(200)
    ours, plain = layers.LayerNorm(1e-5), nn.LayerNorm(1e-5, use_fast_variance=False)
    variables = jax.tree.map(
        lambda v: v + jax.random.uniform(jax.random.key(2), v.shape), plain.init(jax.random.key(1), x)
    )
    assert jax.tree.structure(variables) == jax.tree.structure(ours.init(jax.random.key(1), x))
    assert_equal_to(
        value_and_gradients(plain.apply, variables, x), value_and_gradients(ours.apply, variables, x), tolerance=1e-5
    )


@pytest.mark.parametrize("shape", [(8, 6, 6, 16), (256, 16), (1, 16, 16, 16)])
def test_batch_norm_is_exact_at_a_large_mean(shape):
    x = at_mean_100(shape)
    expected, mean, variance = normalized(x, tuple(range(x.ndim - 1)))

    def errors(module):
        variables = module.init(jax.random.key(0), x)
        y, updated = module.apply(variables, x, mutable=["batch_stats"])
        return np.abs(y - expected).max(), updated["batch_stats"]

    error, updated = errors(layers.BatchNorm(True))
    assert error < 3e-4
    np.testing.assert_allclose(updated["mean"], 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(updated["var"], 0.9 + 0.1 * variance, rtol=1e-6)
    assert errors(nn.BatchNorm(False, momentum=0.9))[0] > 0.1


def test_batch_norm_is_exact_if_the_first_image_differs_from_the_others():
    x = at_mean_100((32, 4, 4, 3)).at[0].set(0.0)
    expected, _, _ = normalized(x, (0, 1, 2))
    y, _ = layers.BatchNorm(True).apply(layers.BatchNorm(True).init(jax.random.key(0), x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax_forward_and_backward(train):
    x = 2 * jax.random.normal(jax.random.key(0), (8, 4, 4, 3)) + 1
    ours, plain = layers.BatchNorm(train), nn.BatchNorm(not train, momentum=0.9, use_fast_variance=False)
    variables = plain.init(jax.random.key(1), x)
    assert jax.tree.structure(variables) == jax.tree.structure(ours.init(jax.random.key(1), x))
    variables = jax.tree.map(lambda v: v + jax.random.uniform(jax.random.key(2), v.shape), variables)

    def outputs(module):
        def apply(params, x):
            return module.apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]

        updated = module.apply(variables, x, mutable=["batch_stats"])[1]
        return value_and_gradients(apply, variables["params"], x), updated

    assert_equal_to(outputs(plain), outputs(ours), tolerance=2e-6)


def test_batch_norm_and_layer_norm_in_bfloat16_compute_in_float32():
    x = (jax.random.normal(jax.random.key(0), (8, 4, 4, 16)) + 3).astype(jnp.bfloat16)
    for module, axes in (
        (layers.BatchNorm(True, jnp.bfloat16), (0, 1, 2)),
        (layers.LayerNorm(1e-5, jnp.bfloat16), -1),
    ):
        y, _ = module.apply(module.init(jax.random.key(0), x), x, mutable=["batch_stats"])
        assert y.dtype == jnp.bfloat16
        # Half a unit in the last of 8 bits.
        np.testing.assert_allclose(np.asarray(y, np.float64), normalized(x, axes)[0], rtol=2**-8, atol=1e-5)


def test_gradients_of_depthwise_convolution_and_pooling_inside_shard_map():
    x = jax.random.normal(jax.random.key(0), (16, 6, 6, 4))
    conv = convolution.Conv(4, 3, depthwise=True)
    variables = conv.init(jax.random.key(1), x)

    def loss(variables, x):
        return jnp.square(convolution.max_pool(conv.apply(variables, x))).sum()

    def gradients(variables, x):
        return jax.grad(loss, (0, 1))(variables, x)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.P(), jax.P("data")
    split = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs))(variables, x)
    assert_equal_to(jax.jit(gradients)(variables, x), split)


def test_devices_communicate_once_for_the_gradient_of_a_depthwise_kernel():
    x = jnp.ones((16, 6, 6, 4))
    conv = convolution.Conv(4, 3, depthwise=True)
    variables = conv.init(jax.random.key(1), x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shardings = [jax.NamedSharding(mesh, spec) for spec in (jax.P(), jax.P("data"))]
    gradient = jax.jit(jax.grad(lambda v, x: jnp.square(conv.apply(v, x)).sum()), in_shardings=shardings)
    entry = gradient.lower(variables, x).compile().as_text().partition("\nENTRY ")
    assert entry[2].count("all-reduce(") == 1
    assert entry[0].count("all-reduce(") == 0


def test_product_of_hessian_and_vector_through_depthwise_convolution_and_pooling():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    conv = convolution.Conv(3, 3, depthwise=True)
    variables = conv.init(jax.random.key(1), x)

    def product(by_shifts):
        def gradient(x):
            pool = convolution.max_pool if by_shifts else lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
            kernel = variables["params"]["kernel"]
            y = conv.apply(variables, x) if by_shifts else convolution._convolution(x, kernel, 1, 3)
            return jnp.sum(pool(y) ** 3)

        return jax.jit(lambda x: jax.jvp(jax.grad(gradient), (x,), (jnp.ones_like(x),))[1])(x)

    assert_equal_to(product(False), product(True), 1e-5)


def test_max_pool_of_a_nan_is_nan_and_keeps_the_gradient():
    for at in ((0, 0), (1, 1), (2, 3)):
        x = jnp.ones((1, 4, 4, 1)).at[0, at[0], at[1], 0].set(jnp.nan)
        y, vjp = jax.vjp(convolution.max_pool_by_shifts, x)
        np.testing.assert_array_equal(y, nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]))
        assert vjp(jnp.ones_like(y))[0].sum() == y.size


class ConvolutionAndNorm(nn.Module):
    """A convolution and the BatchNorm after it, one after the other or together."""

    convolution: nn.Module
    train: bool
    together: bool

    @nn.compact
    def __call__(self, x):
        norm, layer = layers.BatchNorm(self.train, name="norm"), self.convolution.copy(name="conv")
        return norm(x, layer) if self.together else norm(layer(x))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        convolution.conv(6, 3, 2, dtype=jnp.float32),
        convolution.Conv(6, 3, use_bias=True),
        convolution.conv(6, 1, dtype=jnp.float32),
        convolution.conv(3, 3, depthwise=True, dtype=jnp.float32),
        convolution.StemConv(6),
    ],
)
def test_batch_norm_with_a_convolution_is_one_after_the_other(layer, train):
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    both = [ConvolutionAndNorm(layer, train, together) for together in (False, True)]
    variables = [module.init(jax.random.key(1), x) for module in both]
    assert_equal_to(*variables, tolerance=0)
    variables = jax.tree.map(lambda v: v + jax.random.uniform(jax.random.key(2), v.shape), variables[0])

    def outputs(module):
        def apply(params, x):
            return module.apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]

        return value_and_gradients(apply, variables["params"], x), module.apply(variables, x, mutable=True)[1]

    assert_equal_to(*map(outputs, both), tolerance=3e-6)


def test_batch_norm_in_evaluation_reads_no_map_with_a_convolution():
    x = jnp.ones((1, 8, 8, 3))
    layer = convolution.conv(6, 3, dtype=jnp.float32)
    counts = []
    for together in (False, True):
        module = ConvolutionAndNorm(layer, False, together)
        jaxpr = jax.make_jaxpr(module.apply)(module.init(jax.random.key(0), x), x)
        outer = [e for e in jaxpr.jaxpr.eqns if e.primitive.name in ("sub", "mul", "add")]
        counts.append(sum(e.outvars[0].aval.shape == (1, 8, 8, 6) for e in outer))
    assert counts == [3, 1]  # minus the mean, times the factor, plus the bias; plus the bias


def attention_arguments(queries, keys, bias_shape=None, batch=(2, 3), heads=2):
    draws = [jax.random.normal(jax.random.key(i), (*batch, n, heads, 8)) for i, n in enumerate((queries, keys, keys))]
    return [*draws, jax.random.normal(jax.random.key(3), bias_shape)] if bias_shape else draws


@pytest.mark.parametrize(
    ("queries", "keys", "bias_shape"),
    [
        (6, 6, None),
        (5, 5, None),
        (6, 5, None),
        (5, 5, (1, 1, 2, 5, 5)),  # regular windows
        (5, 5, (1, 3, 2, 5, 5)),  # shifted windows: not the same in all of them
        (6, 6, (1, 3, 1, 6, 6)),
        (5, 6, (2, 3, 2, 5, 6)),
    ],
)
def test_fused_attention_equals_its_definition(queries, keys, bias_shape):
    arguments = attention_arguments(queries, keys, bias_shape)

    def fused(q, k, v, bias=None):
        return attention.attend_fused(q, k, v, bias, implementation="xla")

    with jax.numpy_dtype_promotion("standard"):
        expected, actual = (value_and_gradients(f, *arguments) for f in (attention.attend, fused))
    assert_equal_to(expected, actual, tolerance=2e-6)


def test_control_attention_without_a_mask_of_the_padding_exceeds_the_tolerance():
    query, key, value = attention_arguments(5, 5)
    padded = [jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value)]
    with pytest.raises(AssertionError):
        assert_equal_to(attention.attend(query, key, value), attention.attend(*padded)[:, :, :5], tolerance=1e-2)


def test_fused_attention_of_mapped_sequences_equals_that_of_a_batch():
    query, key, value = attention_arguments(5, 5)
    fused = lambda q, k, v: attention.attend_fused(q, k, v, implementation="xla")  # noqa: E731
    assert_equal_to(fused(query, key, value), jax.vmap(fused)(query, key, value))


def test_attention_of_a_cpu_is_not_fused():
    assert not attention.has_cudnn(jnp.dtype("bfloat16"), 64, True, False)


class Gpu:
    """Stands for the first device."""

    class client:  # noqa: N801
        platform_version = "PJRT C API\ncuda 12090"


def with_factor(fused, factor):
    return lambda *arguments: fused(*arguments, implementation="xla") * jnp.asarray(factor, arguments[0].dtype)


def without_mask(fused):
    def attend(q, k, v, bias=None):
        pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))  # noqa: E731
        return attention._attend(pad(q), pad(k), pad(v), bias)[:, :, :-1]

    return attend


@pytest.mark.parametrize(
    ("form", "odd", "biased", "expected"),
    [
        (lambda fused: with_factor(fused, 1.0), True, True, True),
        (lambda fused: with_factor(fused, 1.0), True, False, True),
        (lambda fused: with_factor(fused, 1.0), False, False, True),
        (lambda fused: with_factor(fused, 1.03), True, True, False),
        (lambda fused: with_factor(fused, 1.03), True, False, False),
        (without_mask, True, False, False),
    ],
)
def test_cudnn_is_used_only_if_it_is_right(monkeypatch, capsys, form, odd, biased, expected):
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu])
    monkeypatch.setattr(jax, "default_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(attention, "attend_fused", form(attention.attend_fused))
    kind = jnp.dtype("bfloat16"), 32, odd, biased
    # While another function is traced, as in a training step.
    assert bool(jax.jit(lambda x: x * int(attention.has_cudnn.__wrapped__(*kind)))(1)) == expected
    assert capsys.readouterr().out.startswith("attention without cuDNN (relative errors of 0.0") == (not expected)


def test_without_cudnn_a_line_says_why(monkeypatch, capsys):
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu])
    assert not attention.has_cudnn.__wrapped__(jnp.dtype("bfloat16"), 32, True, True)
    assert capsys.readouterr().out.startswith("attention without cuDNN (")


@pytest.fixture
def pretended_cudnn(monkeypatch):
    """Makes jax, and this package, trace as they do on an NVIDIA GPU."""
    checks = {"check_cudnn_version": 91000, "check_compute_capability": True, "is_cuda_compute_capability_equal": False}
    for name, answer in checks.items():
        monkeypatch.setattr(fused_attention_stablehlo, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(attention, "has_cudnn", lambda *_: True)


def half_precision(bias_shape=None):
    arguments = attention_arguments(33, 33, bias_shape)
    return [x.astype(jnp.bfloat16) for x in arguments[:3]] + arguments[3:]


@pytest.mark.usefixtures("pretended_cudnn")
@pytest.mark.parametrize(("bias_shape", "expected"), [(None, (1, 1)), ((1, 3, 2, 33, 33), (1, 0))])
def test_a_gpu_computes_attention_by_cudnn_and_other_devices_do_not(bias_shape, expected):
    arguments = half_precision(bias_shape)
    gradients = jax.grad(lambda *a: jnp.square(attention.attend(*a).astype(float)).sum(), tuple(range(len(arguments))))
    with jax.numpy_dtype_promotion("standard"):
        traced = jax.jit(gradients).trace(*arguments)
        texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "cpu", "tpu")}
        with attention.plain_attention():
            plain = jax.jit(attention.attend).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    calls = [len(re.findall(r"@__cudnn\$fmha\w*Softmax\(", texts["cuda"])), texts["cuda"].count("SoftmaxBackward(")]
    assert tuple(calls) == expected
    assert not any("cudnn" in text for text in (texts["cpu"], texts["tpu"], plain))


@pytest.mark.usefixtures("pretended_cudnn")
def test_a_network_can_be_exported_for_all_platforms_with_plain_attention_only():
    network = models.create("vit_pico", 10, 24).clone(dtype=jnp.bfloat16)
    images = jnp.zeros(network.image_shape())  # 37 tokens
    with jax.numpy_dtype_promotion("standard"):
        variables = network.init(jax.random.key(0), images)

        def exported():
            run = jax.jit(lambda x: network.apply(variables, x).logits)
            return jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(images).serialize()

        with attention.plain_attention():
            assert exported()
        with pytest.raises(Exception, match="dot_product_attention"):
            exported()


@pytest.mark.usefixtures("pretended_cudnn")
def test_gradient_of_a_bias_is_summed_over_devices_and_by_mapped_example():
    arguments = half_precision((1, 3, 2, 33, 33))
    gradient = jax.grad(lambda *a: jnp.square(attention.attend(*a).astype(jnp.float32)).sum(), 3)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.P("data")
    with jax.numpy_dtype_promotion("standard"):
        expected = gradient(*arguments)
        sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(split, split, split, jax.P()), out_specs=jax.P())
        assert_equal_to(expected, jax.jit(sharded)(*arguments), tolerance=2e-2)
        by_image = jax.vmap(gradient, (0, 0, 0, None))(*(x[:, None] for x in arguments[:3]), arguments[3])
        assert_equal_to(expected, by_image.sum(0), tolerance=2e-2)


def test_arrays_and_gradients_are_row_major_on_a_gpu_only():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    y, gradients = value_and_gradients(layers.row_major, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(gradients[0], jax.random.normal(jax.random.key(9), x.shape))
    traced = jax.jit(jax.grad(lambda x: jnp.square(layers.row_major(x)).sum())).trace(x)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    counts = {name: text.count("custom_call @LayoutConstraint") for name, text in texts.items()}
    assert counts == {"cpu": 0, "cuda": 2, "tpu": 0}

"""Layers that compute a standard operation in another way, against the standard one."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lfcc_jax.models import convolution, depthwise, layers
from tests.models.comparison import assert_equal_to, value_and_gradients

CASES = pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])


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


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (2, 3, 5, 6)])
def test_dense_equals_flax_forward_and_backward(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    settings = {"bias_init": nn.initializers.normal(1.0)}
    ours, plain = layers.Dense(7, **settings), nn.Dense(7, **settings)
    variables = plain.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, ours.init(jax.random.key(1), x))
    assert_equal_to(value_and_gradients(plain.apply, variables, x), value_and_gradients(ours.apply, variables, x))


def test_dense_has_the_precision_that_it_is_given():
    x, dense = jnp.ones((4, 5, 6)), layers.Dense(7, precision="highest")
    text = jax.jit(dense.init_with_output).lower(jax.random.key(0), x).as_text()
    assert text.count("dot_general") == text.count("precision = [HIGHEST, HIGHEST]") == 1


def test_dense_multiplies_matrices_on_a_cpu_only():
    x, dense = jnp.ones((4, 5, 6)), layers.Dense(7)
    variables = dense.init(jax.random.key(0), x)
    traced = jax.jit(jax.grad(lambda v: jnp.square(dense.apply(v, x)).sum())).trace(variables)
    of_images = {
        name: traced.lower(lowering_platforms=(name,)).as_text().count("contracting_dims = [0, 1] x [0, 1]")
        for name in ("cpu", "cuda", "tpu")
    }
    assert of_images == {"cpu": 0, "cuda": 1, "tpu": 1}


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 5), (3, 3), (1, 2), (3, 61)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("size", "groups"), [(1, 1), (3, 1), (7, 1), (1, 6), (3, 6), (5, 6), (7, 6)])
def test_conv_equals_flax_forward_and_backward(size, groups, stride, height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 6))
    init = {"kernel_init": nn.initializers.lecun_normal()}
    ours = convolution.Conv(6, size, stride, groups > 1, use_bias=True, **init)
    padding = [(size // 2, size // 2)] * 2
    plain = nn.Conv(6, (size, size), stride, padding, feature_group_count=groups, **init)
    variables = plain.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, ours.init(jax.random.key(1), x))
    assert_equal_to(value_and_gradients(plain.apply, variables, x), value_and_gradients(ours.apply, variables, x))


def test_conv_whose_result_is_smaller_than_its_kernel_is_a_product_on_a_cpu():
    def convolutions(platform, size, stride, width):
        layer, maps = convolution.Conv(5, size, stride), jnp.ones((2, 9, width, 4))
        function = jax.jit(jax.grad(lambda v: layer.apply(v, maps).sum()))
        traced = function.trace(layer.init(jax.random.key(0), maps))
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")

    cases = [(3, 1, 3), (3, 1, 2), (3, 2, 5), (3, 2, 4), (5, 1, 5), (5, 1, 4)]
    assert [convolutions("cpu", *case) > 0 for case in cases] == [True, False] * 3
    assert all(convolutions("tpu", *case) > 0 for case in cases)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 5), (2, 3), (1, 1)])
def test_max_pool_equals_flax_forward_and_backward(height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    x = jnp.round(4 * x) / 4  # with equal values in a window
    plain = lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # noqa: E731
    for ours in (convolution.max_pool, convolution.max_pool_by_shifts):
        assert_equal_to(value_and_gradients(plain, x), value_and_gradients(ours, x))


@CASES
def test_gradients_of_a_depthwise_convolution_in_bfloat16_are_summed_in_float32(size, stride):
    # Values and taps that bfloat16 has, and products and sums of them that it has not.
    x = jax.random.randint(jax.random.key(0), (4, 32, 32, 2), -8, 8).astype(jnp.bfloat16)
    kernel = jax.random.randint(jax.random.key(1), (size, size, 1, 2), -8, 8).astype(jnp.bfloat16)

    def gradients(dtype):
        f = functools.partial(depthwise.depthwise_by_shifts, stride=stride)
        y, pull_back = jax.vjp(f, x.astype(dtype), kernel.astype(dtype))
        return pull_back(jnp.full_like(y, 37))

    expected = jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, expected, gradients(jnp.bfloat16))


@CASES
def test_gradients_of_a_convolution_by_taps_in_bfloat16_are_summed_in_float32(size, stride):
    x = jax.random.randint(jax.random.key(0), (4, 2, 2, 3), -8, 8).astype(jnp.bfloat16)
    layer = convolution.Conv(5, size, stride, dtype=jnp.bfloat16)
    kernel = jax.random.randint(jax.random.key(1), (size, size, 3, 5), -8, 8).astype(jnp.bfloat16)

    def gradients(dtype):
        apply = lambda kernel, x: layer.copy(dtype=dtype).apply({"params": {"kernel": kernel}}, x)  # noqa: E731
        y, pull_back = jax.vjp(apply, kernel.astype(dtype), x.astype(dtype))
        return pull_back(jnp.full_like(y, 37))

    expected = jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, expected, gradients(jnp.bfloat16))


@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_convolution_and_pooling_of_a_symbolic_batch_gather_nothing(size):
    x = jax.random.normal(jax.random.key(0), (3, 9, 11, 4))
    conv = convolution.Conv(4, size, 2, depthwise=True)
    variables = conv.init(jax.random.key(1), x)
    function = jax.jit(lambda x: convolution.max_pool(conv.apply(variables, x)))
    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(function, platforms=["cpu"])(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
    assert "gather" not in exported.mlir_module()
    assert_equal_to(function(x), exported.call(x))


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
def test_batch_norm_is_exact_at_a_large_mean_if_its_running_mean_is_near(shape):
    x = at_mean_100(shape)
    expected, mean, variance = normalized(x, tuple(range(x.ndim - 1)))
    module = layers.BatchNorm(True)
    variables = module.init(jax.random.key(0), x)
    near = jnp.full_like(variables["batch_stats"]["mean"], 100.3)  # three deviations
    variables["batch_stats"]["mean"] = near
    y, updated = module.apply(variables, x, mutable=["batch_stats"])
    assert np.abs(y - expected).max() < 3e-4
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 * near + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * variance, rtol=1e-6)


def test_batch_norm_becomes_exact_at_a_large_mean_as_its_running_mean_gets_near():
    x = at_mean_100((8, 6, 6, 16))
    expected, _, _ = normalized(x, (0, 1, 2))

    def errors(module):
        variables = module.init(jax.random.key(0), x)
        for _ in range(80):
            y, updated = module.apply(variables, x, mutable=["batch_stats"])
            variables |= updated
            yield np.abs(y - expected).max()

    ours, plain = list(errors(layers.BatchNorm(True))), list(errors(nn.BatchNorm(False, momentum=0.9)))
    assert ours[0] > 0.1  # as is flax's
    assert ours[-1] < 3e-4
    assert plain[-1] > 0.1


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


@CASES
def test_gradients_of_depthwise_convolution_and_pooling_inside_shard_map(size, stride):
    x = jax.random.normal(jax.random.key(0), (16, 6, 6, 4))
    conv = convolution.Conv(4, size, stride, depthwise=True)
    variables = conv.init(jax.random.key(1), x)

    def loss(variables, x):
        return jnp.square(convolution.max_pool(conv.apply(variables, x))).sum()

    def gradients(variables, x):
        return jax.grad(loss, (0, 1))(variables, x)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.P(), jax.P("data")
    split = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs))(variables, x)
    assert_equal_to(jax.jit(gradients)(variables, x), split)


@CASES
def test_devices_communicate_once_for_the_gradient_of_a_depthwise_kernel(size, stride):
    x = jnp.ones((16, 6, 6, 4))
    conv = convolution.Conv(4, size, stride, depthwise=True)
    variables = conv.init(jax.random.key(1), x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shardings = [jax.NamedSharding(mesh, spec) for spec in (jax.P(), jax.P("data"))]
    gradient = jax.jit(jax.grad(lambda v, x: jnp.square(conv.apply(v, x)).sum(), (0, 1)), in_shardings=shardings)
    entry = gradient.lower(variables, x).compile().as_text().partition("\nENTRY ")
    assert entry[2].count("all-reduce(") == 1
    assert entry[0].count("all-reduce(") == 0


@CASES
def test_product_of_hessian_and_vector_through_depthwise_convolution_and_pooling(size, stride):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    conv = convolution.Conv(3, size, stride, depthwise=True)
    variables = conv.init(jax.random.key(1), x)

    def product(by_shifts):
        def loss(kernel, x):
            pool = convolution.max_pool if by_shifts else lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
            y = (
                conv.apply({"params": {"kernel": kernel}}, x)
                if by_shifts
                else convolution._convolution(x, kernel, stride, 3)
            )
            return jnp.sum(pool(y) ** 3)

        at = variables["params"]["kernel"], x
        return jax.jit(lambda *at: jax.jvp(jax.grad(loss, (0, 1)), at, jax.tree.map(jnp.ones_like, at))[1])(*at)

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


def test_arrays_and_gradients_are_row_major_on_a_gpu_only():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    y, gradients = value_and_gradients(layers.row_major, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(gradients[0], jax.random.normal(jax.random.key(9), x.shape))
    traced = jax.jit(jax.grad(lambda x: jnp.square(layers.row_major(x)).sum())).trace(x)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    counts = {name: text.count("custom_call @LayoutConstraint") for name, text in texts.items()}
    assert counts == {"cpu": 0, "cuda": 2, "tpu": 0}

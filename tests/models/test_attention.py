"""Attention by its definition, padded and masked, and by cuDNN."""

import contextlib
import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from experiments.cost import instructions
from experiments.tpu.collectives import KINDS
from lfcc_jax import models
from lfcc_jax.models import attention, swin, vit
from tests.models.comparison import assert_equal_to, value_and_gradients


def attention_arguments(queries, keys, bias_shape=None, batch=(2, 3), heads=2):
    draws = [jax.random.normal(jax.random.key(i), (*batch, n, heads, 8)) for i, n in enumerate((queries, keys, keys))]
    return [*draws, jax.random.normal(jax.random.key(3), bias_shape)] if bias_shape else draws


@pytest.mark.parametrize(
    ("queries", "keys", "bias_shape", "batch"),
    [
        (6, 6, None, (2, 3)),
        (5, 5, None, (2, 3)),
        (6, 5, None, (2, 4)),
        (5, 5, (1, 1, 2, 5, 5), (2, 3)),  # regular windows
        (5, 5, (1, 3, 2, 5, 5), (2, 3)),  # shifted windows: not the same in all of them
        (6, 6, (1, 3, 1, 6, 6), (2, 3)),
        (5, 6, (2, 3, 2, 5, 6), (2, 3)),
        (5, 5, (1, 1, 2, 5, 5), (2, 4)),  # an even number of windows: in pairs
        (5, 5, (1, 4, 2, 5, 5), (2, 4)),
        (5, 6, (2, 1, 1, 5, 6), (2, 4)),
    ],
)
def test_fused_attention_equals_its_definition(queries, keys, bias_shape, batch):
    arguments = attention_arguments(queries, keys, bias_shape, batch)

    def fused(q, k, v, bias=None):
        return attention.attend_fused(q, k, v, bias, implementation="xla")

    with jax.numpy_dtype_promotion("standard"):
        expected, actual = (value_and_gradients(f, *arguments) for f in (attention.attend, fused))
    assert_equal_to(expected, actual, tolerance=2e-6)


def test_windows_of_a_pair_do_not_see_each_other():
    query, key, value, bias = attention_arguments(5, 5, (1, 1, 2, 5, 5), batch=(2, 4))
    fused = functools.partial(attention.attend_fused, bias=bias, implementation="xla")
    with jax.numpy_dtype_promotion("standard"):
        assert attention._fit_in_pairs(query, key, bias)
        before, after = fused(query, key, value), fused(query, key.at[:, 1].mul(9), value.at[:, 1].set(9))
    assert (before == after).all((0, 2, 3, 4)).tolist() == [True, False, True, True]


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


def with_unmasked_pairs(fused):
    def attend(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "MASKED_LOGIT", 0.0)
            return fused(*arguments, implementation="xla")

    return attend


@pytest.mark.parametrize(
    ("form", "odd", "biased", "expected"),
    [
        (lambda fused: with_factor(fused, 1.0), True, True, True),
        (lambda fused: with_factor(fused, 1.0), True, False, True),
        (lambda fused: with_factor(fused, 1.0), False, False, True),
        (lambda fused: with_factor(fused, 1.0), False, True, True),  # in pairs
        (lambda fused: with_factor(fused, 1.03), True, True, False),
        (lambda fused: with_factor(fused, 1.03), True, False, False),
        (lambda fused: with_factor(fused, 1.03), False, True, False),
        (without_mask, True, False, False),
        (with_unmasked_pairs, False, True, False),
    ],
)
def test_cudnn_is_used_only_if_it_is_right(monkeypatch, capsys, form, odd, biased, expected):
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu])
    monkeypatch.setattr(jax, "default_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(attention, "attend_fused", form(attention.attend_fused))
    kind = jnp.dtype("bfloat16"), 32, odd, biased
    # While another function is traced, as in a training step.
    assert bool(jax.jit(lambda x: x * int(attention.has_cudnn.__wrapped__(*kind)))(1)) == expected
    assert capsys.readouterr().out.startswith("attention without cuDNN (relative errors of 0.") == (not expected)


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


def half_precision(bias_shape=None, batch=(2, 3)):
    arguments = attention_arguments(33, 33, bias_shape, batch)
    return [x.astype(jnp.bfloat16) for x in arguments[:3]] + arguments[3:]


@pytest.mark.usefixtures("pretended_cudnn")
@pytest.mark.parametrize(
    ("bias_shape", "windows", "expected", "tokens"),
    [(None, 3, (1, 1), 34), ((1, 3, 2, 33, 33), 3, (1, 0), 34), ((1, 4, 2, 33, 33), 4, (1, 0), 66)],
)
def test_a_gpu_computes_attention_by_cudnn_and_other_devices_do_not(bias_shape, windows, expected, tokens):
    arguments = half_precision(bias_shape, (2, windows))
    gradients = jax.grad(lambda *a: jnp.square(attention.attend(*a).astype(float)).sum(), tuple(range(len(arguments))))
    with jax.numpy_dtype_promotion("standard"):
        traced = jax.jit(gradients).trace(*arguments)
        texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "cpu", "tpu")}
        with attention.plain_attention():
            plain = jax.jit(attention.attend).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    calls = [len(re.findall(r"@__cudnn\$fmha\w*Softmax\(", texts["cuda"])), texts["cuda"].count("SoftmaxBackward(")]
    assert tuple(calls) == expected
    assert f"x{tokens}x8xbf16>" in texts["cuda"]
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
@pytest.mark.parametrize("windows", [3, 4])  # four are computed in pairs
def test_gradient_of_a_bias_is_summed_over_devices_and_by_mapped_example(windows):
    arguments = half_precision((1, windows, 2, 33, 33), (2, windows))
    gradient = jax.grad(lambda *a: jnp.square(attention.attend(*a).astype(jnp.float32)).sum(), 3)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.P("data")
    with jax.numpy_dtype_promotion("standard"):
        expected = gradient(*arguments)
        sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(split, split, split, jax.P()), out_specs=jax.P())
        assert_equal_to(expected, jax.jit(sharded)(*arguments), tolerance=2e-2)
        by_image = jax.vmap(gradient, (0, 0, 0, None))(*(x[:, None] for x in arguments[:3]), arguments[3])
        assert_equal_to(expected, by_image.sum(0), tolerance=2e-2)


def on_tpu(monkeypatch):
    """Makes this device compute what a TPU computes."""

    def of_tpu(*arguments, default, tpu=None, **_):
        return (tpu or default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_tpu)


@pytest.mark.parametrize("bias_shape", [None, (1, 1, 2, 5, 5), (1, 3, 2, 5, 5)])
def test_projected_attention_equals_that_of_its_parts(bias_shape):
    turned = functools.partial(jnp.roll, shift=1, axis=-1)
    query, key, value, *bias = attention_arguments(5, 5, bias_shape)
    expected = attention.attend(turned(query), turned(key), value, *bias).reshape(2, 3, 5, -1)
    qkv = jnp.stack([query, key, value], axis=-3).reshape(2, 3, 5, -1)
    assert_equal_to(expected, attention.attend_projected(qkv, 2, *bias, rotate=turned))


_init = jax.nn.initializers.normal(0.5)
MODULES = [
    (vit.Attention(2, _init), (2, 9, 8)),
    (swin.WindowAttention(2, (4, 2), (0, 0), _init), (2, 8, 6, 8)),
    (swin.WindowAttention(2, (2, 4), (1, 2), _init), (3, 5, 11, 8)),  # shifted and padded
    (swin.WindowAttention(2, (2, 4), (0, 2), _init), (2, 2, 10, 8)),  # one row of windows
    (swin.WindowAttention(2, (4, 4), (0, 0), _init), (2, 4, 4, 8)),  # one window
]


def outputs(module, shape):
    """Returns a function of variables and inputs in training, the variables, and the inputs."""
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jax.tree.map(
        lambda v: v + jax.random.normal(jax.random.key(2), v.shape) / 4, module.init(jax.random.key(1), x, False)
    )
    return lambda variables, x: module.apply(variables, x, True), variables, x


@pytest.mark.parametrize(("module", "shape"), MODULES)
def test_attention_on_a_tpu_equals_that_elsewhere_forward_and_backward(monkeypatch, module, shape):
    function, *arguments = outputs(module, shape)
    expected = value_and_gradients(function, *arguments)
    on_tpu(monkeypatch)
    assert_equal_to(expected, value_and_gradients(function, *arguments), tolerance=2e-6)


@pytest.mark.parametrize(("module", "shape"), MODULES)
def test_gradient_of_attention_computes_the_weights_again_on_a_tpu_only(module, shape):
    function, *arguments = outputs(module, shape)
    traced = jax.jit(jax.grad(lambda *arguments: jnp.square(function(*arguments)).sum())).trace(*arguments)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    with attention.plain_attention():
        plain = jax.jit(jax.grad(lambda *arguments: jnp.square(function(*arguments)).sum())).trace(*arguments)
        texts["plain"] = plain.lower(lowering_platforms=("tpu",)).as_text()
    counts = {name: text.count("stablehlo.exponential") for name, text in texts.items()}
    assert counts == {"cpu": 1, "cuda": 1, "tpu": 2, "plain": 1}
    assert "optimization_barrier" in texts["tpu"]  # or XLA would compute them once


@pytest.mark.parametrize("shift", [(0, 0), (2, 2)])
def test_devices_sum_the_gradients_of_windows_once_on_a_tpu(monkeypatch, shift):
    function, variables, x = outputs(swin.WindowAttention(2, (4, 4), shift, _init), (8, 12, 12, 8))
    on_tpu(monkeypatch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P()))
    gradient = jax.jit(
        jax.grad(lambda *arguments: jnp.square(function(*arguments)).sum(), (0, 1)),
        in_shardings=(whole, batch),
        out_shardings=(whole, batch),
    )
    text = gradient.lower(variables, x).compile().as_text()
    found = [each for each in instructions(text) if each.kind in KINDS]
    assert [(each.kind, each.turns) for each in found] == [("all-reduce", 1)]

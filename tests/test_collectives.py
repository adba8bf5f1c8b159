"""Collectives and memory of compiled programs on eight devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding

from experiments.tpu import collectives as parser
from lfcc_jax import KINDS, compact_grids, info_nce, lfcc_init, lfcc_loss, low_pass
from lfcc_jax.learned_filter import learned_compact_grids, learned_filter_init
from lfcc_jax.models import layers
from lfcc_jax.spectrum import energy_below, radial_spectrum

BATCH = jax.P("data")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.fixture(scope="module")
def split(mesh):
    """Returns abstract arrays whose first axis is split over the devices."""
    sharding = NamedSharding(mesh, BATCH)
    return lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@pytest.fixture(scope="module")
def replicated(mesh):
    """Returns abstract arrays that are replicated on all devices."""
    return functools.partial(
        jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, jax.P()))
    )


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def collectives(function, *arguments):
    found = parser.collectives(compiled(function, *arguments).as_text())
    return {kind: count for kind, (count, _) in found.items()}


def energy(ys):
    return sum(jnp.sum(jnp.square(y)) for y in jax.tree.leaves(ys))


@pytest.mark.parametrize("kind", KINDS)
def test_filters_of_a_split_batch_and_their_gradients_have_no_collectives(split, kind):
    x = split(64, 14, 14, 32)
    assert collectives(jax.grad(lambda x: energy(compact_grids(x, kind, (1, 2, 4, 7)))), x) == {}
    assert collectives(jax.grad(lambda x: energy(low_pass(x, kind, 0.1))), x) == {}


def test_statistics_of_a_batch_norm_are_reduced_together(split, replicated):
    module = layers.BatchNorm(True)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((64, 14, 14, 32)))
    apply = functools.partial(module.apply, mutable=["batch_stats"])
    assert collectives(apply, replicated(variables), split(64, 14, 14, 32)) == {"all-reduce": 1}


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="XLA no longer gathers an FFT's batch")
def test_control_fft_filter_gathers_the_batch(split):
    gradient = jax.grad(lambda x: energy(low_pass(x, "ideal", 0.1, implementation="fft")))
    assert collectives(gradient, split(64, 14, 14, 32))["all-gather"] > 0


def test_learned_filter_only_reduces_the_gradient_of_its_parameters(split, replicated):
    params = replicated(learned_filter_init((14, 14), (4,)))

    def loss(params, x):
        return energy(learned_compact_grids(params, x, (4,)))

    assert collectives(jax.grad(loss, 1), params, split(64, 14, 14, 32)) == {}
    assert collectives(jax.grad(loss, 0), params, split(64, 14, 14, 32)) == {"all-reduce": 1}


def test_spectra_only_reduce_the_mean_over_the_batch(split):
    assert collectives(lambda x: energy_below(x, 0.1), split(64, 14, 14, 32)) == {}
    assert collectives(lambda x: radial_spectrum(x)[1], split(64, 14, 14, 32)) == {"all-reduce": 1}


def on_devices(mesh, **layout):
    loss = functools.partial(info_nce, temperature=0.1, **layout)
    return jax.shard_map(loss, mesh=mesh, in_specs=BATCH, out_specs=BATCH)


def gradient(loss, of=0):
    return jax.grad(lambda student, teacher: loss(student, teacher).mean(), of)


@pytest.mark.parametrize("chunk_size", [None, 64])
@pytest.mark.parametrize("negatives", ["teacher", "both", "symmetric"])
def test_info_nce_of_constant_teacher_codes_costs_one_all_gather(mesh, split, negatives, chunk_size):
    loss = on_devices(mesh, axis_name="data", negatives=negatives, chunk_size=chunk_size)
    students_are_negatives = {} if negatives == "teacher" else {"reduce-scatter": 1}
    codes = split(512, 16), split(512, 16)
    assert collectives(gradient(loss), *codes) == {"all-gather": 1, **students_are_negatives}


def test_info_nce_of_trainable_teacher_codes_adds_one_reduce_scatter(mesh, split):
    loss = on_devices(mesh, axis_name="data")
    assert collectives(gradient(loss, (0, 1)), split(512, 16), split(512, 16)) == {"all-gather": 1, "reduce-scatter": 1}


def test_ring_gathers_nothing(mesh, split):
    loss, codes = on_devices(mesh, axis_name="data", ring=True), (split(512, 16), split(512, 16))
    # One permutation in the loop of the value, one in that of the gradient, one to return the teacher's gradient.
    assert collectives(loss, *codes) == {"collective-permute": 1}
    assert collectives(gradient(loss), *codes) == {"collective-permute": 2}
    assert collectives(gradient(loss, (0, 1)), *codes) == {"collective-permute": 3}


def test_chunks_are_gathered_one_at_a_time_under_plain_jit(split):
    def max_gathered(**layout):
        text = compiled(
            gradient(functools.partial(info_nce, temperature=0.1, **layout)), *[split(512, 16)] * 2
        ).as_text()
        gathered = re.findall(r" f32\[([\d,]+)\]\S* all-gather\(", text)
        return max(math.prod(map(int, shape.split(","))) for shape in gathered)

    assert max_gathered(chunk_size=64) == 64 * 16
    assert max_gathered() == 512 * 16


def test_control_info_nce_without_axis_name_has_no_collectives(mesh, split):
    assert collectives(gradient(on_devices(mesh)), split(512, 16), split(512, 16)) == {}


def test_ring_takes_at_most_half_the_memory_of_the_global_layout(mesh, split):
    codes = split(4096, 256), split(4096, 256)

    def temporary_bytes(loss):
        value_and_grad = jax.value_and_grad(lambda s, t: loss(s, t).mean())
        return compiled(value_and_grad, *codes).memory_analysis().temp_size_in_bytes

    whole = temporary_bytes(functools.partial(info_nce, temperature=0.1))
    assert temporary_bytes(on_devices(mesh, axis_name="data", ring=True)) <= whole / 2
    assert temporary_bytes(on_devices(mesh, axis_name="data")) > whole / 2


SIZES = {"stage1": 28, "stage2": 14, "stage3": 7, "stage4": 7}
CHANNELS = {"stage1": 4, "stage2": 8, "stage3": 12, "stage4": 16}


@pytest.mark.parametrize(("projector", "expected"), [("student", {}), ("both", {"reduce-scatter": 1})])
def test_lfcc_gathers_the_teachers_codes_of_all_stages_and_grids_at_once(mesh, split, replicated, projector, expected):
    params = replicated(lfcc_init(jax.random.key(0), CHANNELS, CHANNELS, 8, projector=projector))
    features = {stage: split(64, size, size, CHANNELS[stage]) for stage, size in SIZES.items()}

    def loss(params, student, teacher):
        function = functools.partial(lfcc_loss, axis_name="data")
        return jax.shard_map(function, mesh=mesh, in_specs=(jax.P(), BATCH, BATCH), out_specs=BATCH)(
            params, student, teacher
        ).mean()

    counts = collectives(jax.grad(loss, (0, 1)), params, features, features)
    counts.pop("all-reduce")  # sums the projectors' gradients over the devices, as in any data-parallel training
    assert counts == {"all-gather": 1, **expected}


@pytest.mark.parametrize("standardize", [True, False])
def test_lfcc_gathers_codes_of_bfloat16_maps_in_bfloat16(mesh, split, replicated, standardize):
    params = replicated(lfcc_init(jax.random.key(0), CHANNELS, CHANNELS, 8))
    features = {stage: split(64, size, size, CHANNELS[stage], dtype=jnp.bfloat16) for stage, size in SIZES.items()}
    loss = functools.partial(lfcc_loss, axis_name="data", standardize=standardize)
    loss = jax.shard_map(loss, mesh=mesh, in_specs=(jax.P(), BATCH, BATCH), out_specs=BATCH)
    # Lowered but not compiled, because XLA gathers in float32 on CPU.
    text = jax.jit(loss).lower(params, features, features).as_text()
    assert re.findall(r"all_gather.*-> tensor<(?:\d+x)+(\w+)>", text) == ["bf16"]

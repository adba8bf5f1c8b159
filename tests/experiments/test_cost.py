"""What programs cost: multiplications, instructions, and bytes from and to a TPU's main memory."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from experiments.cost import array_bytes, count_macs, instructions
from experiments.tpu.memory import hbm_bytes
from lfcc_jax.training.sharding import create_mesh


def macs(function, *shapes, platform=""):
    return count_macs(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)).jaxpr, platform)


def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_multiplications_of_products_loops_and_all_devices_are_counted():
    assert macs(lambda a, b: jnp.tanh(a @ b) + 1, (3, 4), (4, 5)) == 3 * 4 * 5
    forward = 2 * 3 * 3 * 8 * (3 * 3 * 3)
    assert macs(conv, (2, 7, 7, 3), (3, 3, 3, 8)) == forward
    assert macs(jax.grad(lambda kernel, x: conv(x, kernel).sum()), (3, 3, 3, 8), (2, 7, 7, 3)) == 2 * forward
    of_input = macs(jax.grad(lambda x, kernel: conv(x, kernel).sum()), (2, 7, 7, 3), (3, 3, 3, 8)) - forward
    assert of_input == pytest.approx(2 * 7 * 7 * 3 * (3 * 3 * 8) / 4)  # the strides leave a quarter of the products
    loop = lambda a: jax.lax.scan(lambda x, _: (x @ x, None), a, length=6)[0]  # noqa: E731
    assert macs(jax.grad(lambda a: loop(a).sum()), (4, 4)) == 3 * 6 * 4**3
    mesh = create_mesh(4)
    rows = PartitionSpec(("data", "fsdp"))
    local = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert macs(local, (8, 3), (3, 5)) == 8 * 3 * 5


def test_multiplications_are_those_of_the_platforms_branch():
    def function(x):
        return jax.lax.platform_dependent(x, tpu=lambda x: x @ x, cpu=lambda x: x @ x @ x, default=lambda x: x)

    assert [macs(function, (2, 2), platform=name) for name in ("tpu", "cpu", "cuda", "")] == [8, 16, 0, 0]


def test_instructions_of_a_compiled_program_are_repeated_as_often_as_its_loop_runs():
    function = lambda x: jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x) @ x, x)  # noqa: E731
    text = jax.jit(function).lower(jnp.zeros((4, 4))).compile().as_text()
    turns = {each.turns for each in instructions(text)}
    products = [each for each in instructions(text) if each.operation.endswith("dot_general")]
    assert turns == {1, 7}
    assert len(products) % 7 == 0
    assert products[0].result.startswith("f32[4,4]")


def test_bytes_of_arrays():
    assert array_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[], /*index=2*/s8[5]{0}, token[])") == 12 + 1 + 5


# As XLA prints programs for TPUs, without what is not read.
TPU_PROGRAM = """HloModule jit_step

%more (state: (s32[], f32[4,8,100])) -> pred[] {
  %end = s32[]{:T(128)} constant(4)
  %state.1 = (s32[]{:T(128)}, f32[4,8,100]{2,1,0:T(8,128)}) parameter(0)
  %turn.1 = s32[]{:T(128)S(6)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn.1, %end), direction=LT
}

%body (state: (s32[], f32[4,8,100], f32[4,8,100])) -> (s32[], f32[4,8,100], f32[4,8,100]) {
  %state = (s32[]{:T(128)}, f32[4,8,100]{2,1,0:T(8,128)}, f32[4,8,100]{2,1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %all = f32[4,8,100]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %one = f32[4,8]{1,0:T(8,128)} fusion(%all), kind=kLoop, calls=%part
  %done = (f32[4,8,100]{2,1,0:T(8,128)}, f32[4,8]{1,0:T(8,128)S(1)}) fusion(%one), kind=kLoop, calls=%part
  %written = f32[4,8,100]{2,1,0:T(8,128)} get-tuple-element(%done), index=0
  ROOT %next = (s32[], f32[4,8,100]{2,1,0:T(8,128)}, f32[4,8,100]{2,1,0:T(8,128)}) tuple(%turn, %all, %written)
}

ENTRY %main (x: bf16[49,49]) -> bf16[49,49] {
  %x = bf16[49,49]{0,1:T(8,128)(2,1)} parameter(0)
  %copy-start = (bf16[49,49]{0,1:T(8,128)(2,1)S(1)}, bf16[49,49]{0,1:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[49,49]{0,1:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[49,49]{0,1:T(8,128)(2,1)}), bf16[7,49]{0,1:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %slice-done = bf16[7,49]{0,1:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  %fusion = bf16[49,49]{1,0:T(8,128)(2,1)} fusion(%copy-done, %slice-done), kind=kLoop, calls=%part
  %copy-start.1 = (bf16[49,49]{0,1:T(8,128)(2,1)}, bf16[49,49]{0,1:T(8,128)(2,1)S(1)}, u32[]) copy-start(%copy-done)
  %slice-start.1 = ((bf16[49,49]{0,1:T(8,128)(2,1)S(1)}), bf16[7,49]{0,1:T(8,128)(2,1)}, u32[]) slice-start(%copy-done)
  %buffer = f32[9999]{0:T(1024)} custom-call(), custom_call_target="AllocateBuffer"
  %loop = (s32[], f32[4,8,100]{2,1,0:T(8,128)}, f32[4,8,100]{2,1,0:T(8,128)}) while(%x), condition=%more, body=%body
  ROOT %bitcast = bf16[49,49]{1,0:T(8,128)(2,1)} bitcast(%fusion)
}
"""


def test_bytes_of_a_tpu_are_those_that_cross_between_its_memory_and_the_chip():
    padded = 56 * 128 * 2  # 49 -> 56 rows of 49, or 7, -> 128 columns
    in_and_out, fused = 4 * padded, padded
    part, alike = 8 * 128 * 4, 8 * 128 * 4  # one of the state's four parts; an array that only looks like four
    of_loop = 4 * ((part + alike) + (alike + part))
    assert hbm_bytes(TPU_PROGRAM) == in_and_out + fused + of_loop
    assert {each.turns for each in instructions(TPU_PROGRAM)} == {1, 4}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[10]{0:T(128)}", 128 * 4),
        ("f32[3,4,5]{0,2,1:T(8,128)}", 4 * 8 * 128 * 4),  # 5 rows of 3 columns, four times
        ("s32[]{:T(128)}", 4),
        ("u8[33,129]{1,0:T(32,128)(4,1)}", 64 * 256),
        ("bf16[9,5]{1,0}", 9 * 5 * 2),
    ],
)
def test_sides_are_padded_to_tiles(shape, size):
    line = f"ENTRY %main () -> f32[] {{\n  ROOT %x = {shape} negate()\n}}"
    assert hbm_bytes(line) == size
    assert array_bytes(shape) <= size

"""The list of kernels of a program that is compiled for a GPU without one."""

import importlib.util

import pytest

from experiments.gpu import kernels
from lfcc_jax.errors import UserError

# A fusion, a matrix product by cuBLAS and a loop, as XLA prints them.
PROGRAM = """HloModule jit_f

%wrapped (p: f32[2,3]) -> bf16[2,3] {
  %p = f32[2,3]{1,0} parameter(0)
  ROOT %convert = bf16[2,3]{1,0} convert(%p)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %old = f32[8]{0} get-tuple-element(%state), index=1
  %step = s32[] get-tuple-element(%state), index=0
  %new = f32[8]{0} fusion(%old), kind=kLoop, calls=%doubled, metadata={op_name="jit(f)/while/body/add"}
  ROOT %next = (s32[], f32[8]{0}) tuple(%step, %new)
}

ENTRY %main (x: f32[2,3], w: bf16[3,4]) -> bf16[2,4] {
  %x = f32[2,3]{1,0} parameter(0), metadata={op_name="x"}
  %w = bf16[3,4]{1,0} parameter(1)
  %fusion.1 = bf16[2,3]{1,0} fusion(%x), kind=kLoop, calls=%wrapped, metadata={op_name="jit(f)/block12/convert"}
  %gemm.2 = (bf16[2,4]{1,0}, s8[100]{0}) custom-call(%fusion.1, %w), custom_call_target="__cublas$lt$matmul"
  %part.1 = bf16[2,4]{1,0} get-tuple-element(%gemm.2), index=0
  %loop = (s32[], f32[8]{0}) while(%start), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %bitcast = bf16[2,4]{1,0} bitcast(%part.1)
}
"""


def test_kernels_have_the_bytes_of_operands_and_results():
    fusion, product, *_ = kernels.kernels(PROGRAM)
    assert (fusion.kind, fusion.size, fusion.results) == ("fusion", 2 * 3 * 4 + 2 * 3 * 2, "bf16[2,3]")
    assert fusion.operation == "jit(f)/block#/convert"
    assert (product.kind, product.size) == ("__cublas$lt$matmul", 2 * 3 * 2 + 3 * 4 * 2 + 2 * 4 * 2 + 100)


def test_kernels_of_a_loop_are_counted_as_often_as_it_runs():
    in_loop = kernels.kernels(PROGRAM)[2:]
    assert [(kernel.size, kernel.operation) for kernel in in_loop] == [(2 * 8 * 4, "jit(f)/while/body/add")] * 3


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is not None, reason="the compiler is installed")
def test_without_the_compiler_the_error_says_what_to_install():
    with pytest.raises(UserError, match="pip install jax-cuda12-plugin"):
        kernels.gpu_mesh()

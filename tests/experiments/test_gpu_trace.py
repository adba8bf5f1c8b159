"""The table of operations that a trace of a GPU gives."""

import jax
import jax.numpy as jnp
import pytest

from experiments.gpu import trace
from tests.experiments.test_gpu_kernels import PROGRAM


def test_kernels_of_one_operation_are_added_up_and_the_slowest_is_first():
    found = [("fusion.1", "kernel_a", 3.0), ("fusion.1", "kernel_b", 0.3), ("gemm.2", "nvjet", 6.0), ("", "copy", 0.6)]
    _, _, *rows = trace.slowest(found, PROGRAM, 10).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == [
        ["2.000", "0", "gemm", "bf16[2,4]", ""],
        ["1.100", "1", "fusion", "bf16[2,3]", "jit(f)/block#/convert"],
        ["0.200", "0", "", "", "copy"],
    ]


def test_a_profile_of_a_cpu_has_no_kernels_of_a_gpu(tmp_path):
    with jax.profiler.trace(tmp_path):
        jnp.ones(8).sum().block_until_ready()
    assert list(trace.events(tmp_path)) == []


def test_without_a_gpu_the_error_says_what_there_is(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trace"])
    with pytest.raises(SystemExit, match="error: a GPU is required, jax has cpu"):
        trace.main()

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


# Of jaxlib's classes, from Python 3.12 on; as an error it aborts the process.
@pytest.mark.filterwarnings("ignore:builtin type event_stats has no __module__ attribute:DeprecationWarning")
def test_events_are_those_of_the_streams_of_the_first_gpu(tmp_path):
    event = "events { metadata_id: 1 duration_ps: 2000000 stats { metadata_id: 1 str_value: 'fusion.1' } }"
    names = "event_metadata { key: 1 value { id: 1 name: 'kernel' } } "
    names += "stat_metadata { key: 1 value { id: 1 name: 'hlo_op' } }"
    lines = " ".join(f"lines {{ name: '{name}' {event} }}" for name in ("Stream #7(Compute)", "XLA Ops"))
    planes = [f"planes {{ name: '/device:GPU:{gpu}' {lines} {names} }}" for gpu in range(2)]
    profile = jax.profiler.ProfileData.text_proto_to_serialized_xspace(" ".join(planes))
    (tmp_path / "host.xplane.pb").write_bytes(profile)
    assert list(trace.events(tmp_path)) == [("fusion.1", "kernel", 0.002)]


def test_a_profile_of_a_cpu_has_no_kernels_of_a_gpu(tmp_path):
    with jax.profiler.trace(tmp_path):
        jnp.ones(8).sum().block_until_ready()
    assert list(trace.events(tmp_path)) == []


def test_without_a_gpu_the_error_says_what_there_is(monkeypatch):
    monkeypatch.setattr("sys.argv", ["trace"])
    with pytest.raises(SystemExit, match="error: a GPU is required, jax has cpu"):
        trace.main()

"""The parser of collectives, and a small step compiled for a TPU where libtpu is installed."""

import os
import subprocess
import sys

import pytest

from experiments.tpu.collectives import collectives

TEXT = """
  %all-gather.6 = bf16[16,4,256]{2,1,0:T(4,128)} all-gather(%p.1), channel_id=1, frontend_attributes={chain_id="0"}, x
  %all-gather.8 = bf16[16,4,256]{2,1,0:T(4,128)S(1)} all-gather(%p.2), channel_id=1, frontend_attributes={chain_id="0"}
  %all-reduce.1 = (f32[10]{0}, f32[2,3]{1,0}) all-reduce(%a, %b), channel_id=2
  %all-reduce.2 = f32[5]{0} all-reduce-start(%c), channel_id=3
  %all-reduce.3 = f32[5]{0} all-reduce-done(%all-reduce.2)
  %fusion = f32[100]{0} fusion(%all-gather.8), kind=kLoop
"""


def test_collectives_counts_chains_and_asynchronous_pairs_once():
    assert collectives(TEXT) == {"all-gather": (1, 16 * 4 * 256 * 2), "all-reduce": (2, 4 * (10 + 6 + 5))}


def test_tpu_compile_of_a_small_step_reports_one_all_gather(tmp_path):
    pytest.importorskip("libtpu", reason="needs pip install 'jax[tpu]'")
    command = [sys.executable, "-m", "experiments.tpu.compile", f"--reports={tmp_path}"]
    command.append("--config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc,runlocal")
    command += ["--config.batch_size=64", "--config.images_at_once=2"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    for _ in range(2):  # the second call reads the report
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = dict(line.strip("| ").split("|")[:2] for line in done.stdout.splitlines() if line.startswith("| "))
        rows = {key.strip(): value.strip() for key, value in rows.items()}
        assert rows["all-gather"] == "1"
        assert int(rows["flops"].replace(",", "")) > 1e7
        assert int(rows["hbm_bytes"].replace(",", "")) > 1e6

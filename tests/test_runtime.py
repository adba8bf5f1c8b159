"""The settings of a process: each in a process of its own, since they must come before JAX computes anything."""

import os
import subprocess
import sys

import pytest


def run(code, **variables):
    mine = ("JAX_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(mine)} | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_cache_programs_uses_the_users_cache_directory_unless_jax_has_one(tmp_path):
    code = (
        "import jax; from lfcc_jax.runtime import cache_programs; "
        "cache_programs(); print(jax.config.jax_compilation_cache_dir)"
    )
    assert run(code, XDG_CACHE_HOME=str(tmp_path)) == str(tmp_path / "lfcc_jax")
    assert (tmp_path / "lfcc_jax").is_dir()
    assert run(code, XDG_CACHE_HOME="", HOME=str(tmp_path)) == str(tmp_path / ".cache" / "lfcc_jax")
    assert run(code, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == str(tmp_path / "other")
    (tmp_path / "file").touch()
    assert run(code, XDG_CACHE_HOME=str(tmp_path / "file")) == "None"  # not writable: no cache, no error


FAULTS = """
import resource, jax, jax.numpy as jnp
from lfcc_jax.runtime import keep_freed_memory
kept = keep_freed_memory({pixels})
# The convolution's temporary, 64 MiB, is too large for the pool of a thread other than the main one.
x, kernel = jnp.ones((4, 512, 512, 8)), jnp.ones((3, 3, 8, 16))
step = jax.jit(lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC")).max((1, 2)))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(kept, faults() // 4)
"""


def pages(pixels):
    kept, faults = run(FAULTS.format(pixels=pixels), JAX_PLATFORMS="cpu").split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_that_is_kept_is_not_mapped_again_by_each_step():
    kept, faults = pages(10**6)
    assert kept
    assert faults < 100
    kept, faults = pages(32 * 8**2)
    assert not kept
    assert faults > 64 * 2**20 / 2**16  # pages may be larger than 4 KiB


@pytest.mark.parametrize(
    "variables",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        {"MALLOC_ARENA_MAX": "4"},
        {"JAX_PLATFORMS": "cuda,cpu"},
    ],
    ids=" ".join,
)
def test_memory_is_left_alone_with_settings_of_the_user_or_an_accelerator(variables):
    code = (
        "import jax; from lfcc_jax.runtime import keep_freed_memory; "
        "print(keep_freed_memory(10**6), jax.config.read('jax_cpu_enable_async_dispatch'))"
    )
    assert run(code, **{"JAX_PLATFORMS": "cpu"} | variables) == "False True"


@pytest.mark.parametrize(
    "command",
    [
        "from lfcc_jax.train import train_and_evaluate; from lfcc_jax.default_config import get_config; "
        "config = get_config('method=teacher'); config.data.data_dir = {data_dir!r}; config.batch_size = 512; "
        "train_and_evaluate(config, {out!r})",
        "from lfcc_jax.distill import main; "
        "main(['--teacher=lfcc_jax/models/vit.py:ViT', '--student=vit_pico', '--data={data_dir}/digits', "
        "'--batch-size=512', '--out', {out!r}])",
        "from lfcc_jax.evaluate import main; "
        "main(['runs/none', '--data=digits', '--data-dir', {data_dir!r}, '--batch-size=512', '--out', {out!r}])",
    ],
    ids=["train", "distill", "evaluate"],
)
def test_commands_keep_memory_before_jax_has_threads(command, data_dir, tmp_path):
    code = (
        "import sys; from jax._src import xla_bridge; from lfcc_jax import runtime\n"
        "runtime.keep_freed_memory = lambda pixels: sys.exit(f'{pixels} {xla_bridge.backends_are_initialized()}')\n"
    )
    code += command.format(data_dir=str(data_dir), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"{512 * 8**2} False"

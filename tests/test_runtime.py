"""The settings of a process: each in a new process, since they must come before JAX computes anything."""

import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lfcc_jax import models


def run(code, **variables):
    mine = ("JAX_", "XLA_FLAGS", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
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
import ctypes, resource, jax, numpy as np
from lfcc_jax.runtime import keep_freed_memory, ready
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, which are few
keep_freed_memory({pixels})
# The result of the convolution, 64 MiB, is too large for the pool of a thread other than the main one.
batch, kernel = np.ones((4, 512, 512, 8), np.float32), np.ones((3, 3, 8, 16), np.float32)
step = jax.jit(lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC")).max((1, 2)))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step(ready(jax.device_put(batch))).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(5)) // 4)  # the pool grows first
"""


def faults(pixels):
    return int(run(FAULTS.format(pixels=pixels), JAX_PLATFORMS="cpu"))


GLIBC = platform.libc_ver()[0] == "glibc" and tuple(map(int, platform.libc_ver()[1].split("."))) >= (2, 35)


@pytest.mark.skipif(not GLIBC, reason="glibc 2.35")
def test_memory_that_is_kept_is_not_mapped_again_by_each_step():
    pages = 64 * 2**20 // os.sysconf("SC_PAGESIZE")
    assert faults(10**6) < pages / 10
    assert faults(32 * 8**2) > pages / 2


KEEPS = """
import jax
from lfcc_jax.runtime import keep_freed_memory
{first}
keep_freed_memory(10**6)
print(jax.config.read("jax_cpu_enable_async_dispatch"))
"""


@pytest.mark.parametrize(
    "variables",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"},
        {"MALLOC_TRIM_THRESHOLD_": "100000"},
        {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "1"},
        {"JAX_PLATFORMS": "cuda,cpu"},
        {"JAX_NUM_CPU_DEVICES": "2"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    ],
    ids=" ".join,
)
def test_memory_is_left_alone_with_settings_of_the_user_or_other_devices(variables):
    assert run(KEEPS.format(first=""), **{"JAX_PLATFORMS": "cpu"} | variables) == "True"


@pytest.mark.skipif(not GLIBC, reason="glibc 2.35")
def test_memory_is_kept_with_one_cpu_device():
    assert run(KEEPS.format(first=""), JAX_PLATFORMS="cpu") == "False"


def test_memory_is_left_alone_where_jax_runs_already():
    assert run(KEEPS.format(first="jax.devices()"), JAX_PLATFORMS="cpu") == "True"


@pytest.mark.parametrize(
    ("images", "command"),
    [
        (
            512,
            "from lfcc_jax.train import train_and_evaluate; from lfcc_jax.default_config import get_config; "
            "config = get_config('method=teacher'); config.data.data_dir = {data_dir!r}; config.batch_size = 512; "
            "train_and_evaluate(config, {out!r})",
        ),
        (
            512,
            "from lfcc_jax.distill import main; "
            "main(['--teacher=lfcc_jax/models/vit.py:ViT', '--student=vit_pico', '--data={data_dir}/digits', "
            "'--batch-size=512', '--out', {out!r}])",
        ),
        (
            500,  # all that there are
            "from lfcc_jax.evaluate import main; "
            "main([{network!r}, '--data={data_dir}/digits', '--batch-size=512', '--out', {out!r}])",
        ),
        (32, "from lfcc_jax.predict import main; main([{network!r}, *[{out!r}] * 512])"),
    ],
    ids=["train", "distill", "evaluate", "predict"],
)
def test_commands_keep_memory_before_jax_runs(images, command, data_dir, tmp_path):
    network = models.create("vit_pico", 10, image_size=8)
    about = {"name": "vit_pico", "num_classes": 10, "image_size": 8, "class_names": []}
    models.save(tmp_path / "network", network.init(jax.random.key(0), jnp.zeros(network.image_shape())), about)
    code = (
        "import sys; from jax._src import xla_bridge; from lfcc_jax import runtime\n"
        "runtime.keep_freed_memory = lambda pixels: sys.exit(f'{pixels} {xla_bridge.backends_are_initialized()}')\n"
    )
    code += command.format(data_dir=str(data_dir), network=str(tmp_path / "network"), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"{images * 8**2} False"

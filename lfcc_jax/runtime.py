"""Settings of a process that shorten its start and its steps."""

import ctypes
import gc
import importlib.util
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge

# Parameters of glibc's `mallopt`, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Variables with which users decide on memory or dispatch themselves.
_SETTINGS = {
    *("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"),
    "JAX_CPU_ENABLE_ASYNC_DISPATCH",
}
# From here on, kept memory saves more than it costs: batches of 128 images of 16 x 16.
_MANY_PIXELS = 2**15


def cache_programs() -> None:
    """Enables JAX's compilation cache, in the user's cache directory unless JAX has another one.

    Resumed runs, and runs with another seed, then do not compile again.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lfcc_jax"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home only costs compile time
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def collect_garbage_rarely() -> None:
    """Raises Python's thresholds: with its defaults, collections slow down the tracing of a step."""
    gc.set_threshold(200_000, 100, 100)


def keep_freed_memory(pixels: int) -> None:
    """Lets a process that computes on one CPU device keep the memory that it frees, if batches are large.

    By default, glibc returns the arrays of a step to the system, and the next step waits until each of their pages is
    mapped and zeroed again, for up to 40% of its time. With this, arrays of up to 1 GiB come from a pool that does not
    shrink, so a process may hold twice the memory. Only the main thread's pool can be that large, so programs run in
    the thread that calls them, until the process ends. That costs up to 3 ms of a step, as the thread cannot fetch the
    next batch meanwhile.

    Nothing changes for few pixels; if JAX runs already, or may have an accelerator or several devices; without glibc
    2.35 or later; or if the environment already has a setting for this.

    Args:
      pixels: Pixels of a batch.
    """
    if pixels < _MANY_PIXELS or not sys.platform.startswith("linux") or not _one_cpu_device():
        return
    if jax_runs() or _SETTINGS & os.environ.keys():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return
    if mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, -1):  # at most 32 MiB before glibc 2.35
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def jax_runs() -> bool:
    """Returns whether JAX has started its devices; `jax.devices` and many other functions start them."""
    return xla_bridge.backends_are_initialized()  # there is no public API


def ready(arrays: Any) -> Any:
    """Returns arrays; with kept memory, after waiting for their copies from the host.

    A program whose arguments are not ready would run in another thread.
    """
    return arrays if jax.config.read("jax_cpu_enable_async_dispatch") else jax.block_until_ready(arrays)


def _one_cpu_device() -> bool:
    if jax.config.jax_num_cpu_devices > 1 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return False
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    plugins = entry_points(group="jax_plugins") or any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
    return not plugins

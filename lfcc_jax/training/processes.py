"""The processes of a run on several hosts: they must agree on the run, and if one fails, all exit."""

import atexit
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax

from lfcc_jax import runtime
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import differences

# Packages that affect the numbers of a step or the order of examples.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain")
_FAILED, _LEAVING = "lfcc_jax/failed", "lfcc_jax/leaving"
# Parts of JAX's error messages when another process is gone.
_LOST = ("Gloo", "Connection reset", "Connection closed", "Socket closed", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_gathered = itertools.count()  # the same in all processes, which gather in the same order
_ending = threading.Lock()  # held by the thread that ends this process, and never released


def gather(value: Any) -> list[Any]:
    """Returns the `value` of every process, ordered by process index. All processes must call this together.

    Uses JAX's coordination service, not its devices: nothing is compiled, and processes may arrive minutes apart, while
    collectives on CPU time out after 30 seconds.

    Args:
      value: A JSON value.
    """
    text = json.dumps(value, default=str)
    service = _service()
    if service.client is None:
        return [json.loads(text)]
    name = f"lfcc_jax/gather_{next(_gathered)}"
    service.client.key_value_set(f"{name}/{service.process_id}", text)
    service.client.wait_at_barrier(name, 1_800_000)
    texts = dict(service.client.key_value_dir_get(f"{name}/"))
    return [json.loads(texts[f"{name}/{process}"]) for process in range(service.num_processes)]


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same config and inputs.

    Args:
      facts: Values that must be the same in all processes: nested dicts of JSON values.

    Raises:
      UserError: in every process, with the keys, if any process differs from process 0.
    """
    first, *others = gather(facts)
    for process, other in enumerate(others, start=1):
        if different := differences(first, other, ""):
            values = "; ".join(f"{key} is {here} in process 0, {there} in {process}" for key, here, there in different)
            raise UserError(f"all processes must have the same config, software and inputs, but {values}")


def is_first() -> bool:
    """Returns whether this is process 0. Unlike `jax.process_index`, it does not start JAX's devices."""
    return (jax.process_index() if runtime.jax_runs() else _service().process_id) == 0


def in_first_process(action: Callable[[], None]) -> None:
    """Calls `action` in process 0 only.

    Raises:
      UserError: in every process, if `action` raises it.
    """
    message = None
    if is_first():
        try:
            action()
        except UserError as error:
            if _service().client is None:
                raise
            message = str(error)
    if message := gather(message)[0]:
        raise UserError(message)


def software() -> dict[str, str]:
    """Returns the versions of the packages that a run's numbers depend on, and a digest of this package's source."""
    root = Path(__file__).parents[1]
    source = b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")))
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return versions | {"lfcc_jax": hashlib.sha256(source).hexdigest()[:12]}


def end(status: int, line: str) -> NoReturn:
    """Prints a line to stderr and exits immediately, and with it all processes that called `watch_peers`.

    Skips the normal shutdown: an interrupted compilation leaves XLA's threads running, and Python's finalization then
    crashes; and JAX's shutdown would wait minutes for processes that wait for this one.

    Args:
      status: Exit status.
      line: Line to print.
    """
    _ending.acquire()
    print(line, file=sys.stderr)
    service = _service()
    if service.client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process failed first
            service.client.key_value_set(_FAILED, json.dumps([service.process_id, status, line]))
    _leave(status)


def end_after(error: Exception) -> NoReturn:
    """Ends this process and its peers after an exception that is not a `UserError`, with a traceback and one line.

    If the exception only means that another process is gone, which collectives on CPU detect immediately, there is no
    traceback. On accelerators, JAX detects it after 100 seconds without a heartbeat (immediately for process 0), and
    aborts this process with a page of C++ messages, which Python cannot intercept.
    """
    line = " ".join(str(error).split())[:300]
    if isinstance(error, jax.errors.JaxRuntimeError) and any(words in line for words in _LOST):
        time.sleep(3.0)  # if the other process called `end`, `watch_peers` prints its line and ends this one first
        end(1, f"error: lost contact with another process: {line}")
    traceback.print_exception(error)
    end(1, f"error: {type(error).__name__}: {line}")


def watch_peers() -> None:
    """Starts a thread that ends this process, with one line, after another process calls `end`.

    Without it, this process would wait for the other one in a collective: forever, or until JAX aborts it with a page
    of C++ messages.
    """
    client, stop = _service().client, threading.Event()
    if client is None:
        return

    def watch() -> None:
        while not stop.wait(1.0):
            try:
                process, status, line = json.loads(client.key_value_try_get(_FAILED))
            except jax.errors.JaxRuntimeError:  # NOT_FOUND: no process has failed
                continue
            if _ending.acquire(blocking=False):
                print(f"process {process} ended this run: {line}", file=sys.stderr)
                _leave(status)
            return

    thread = threading.Thread(target=watch, name="watch_peers", daemon=True)
    thread.start()
    # Runs before JAX's exit handlers, which were registered earlier, so no request is pending when the client closes.
    atexit.register(lambda: (stop.set(), thread.join()))


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    service = _service()
    if service.client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            service.client.wait_at_barrier(_LEAVING, 10_000)
        if service.process_id == 0:
            time.sleep(1.0)  # this process hosts the coordination service, and JAX aborts processes that lose it
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


def _service() -> Any:
    """Returns the state of JAX's coordination service. `client` is None in a run of one process."""
    from jax._src import distributed  # there is no public API

    return distributed.global_state

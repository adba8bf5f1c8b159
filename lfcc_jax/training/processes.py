"""The processes of a run on several hosts: they train the same thing, and when one fails all of them end."""

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

from lfcc_jax.errors import UserError
from lfcc_jax.training.config import differences

# Packages that decide which numbers a step computes and which examples it gets.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain")
_FAILED, _LEAVING = "lfcc_jax/failed", "lfcc_jax/leaving"
# What JAX says if another process is gone.
_GONE = ("Gloo", "Connection reset", "Connection closed", "Socket closed", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_gathered = itertools.count()  # all processes gather in the same order
_ending = threading.Lock()  # taken, for good, by the thread that ends this process


def gather(value: Any) -> list[Any]:
    """Returns the `value` of every process, ordered by process index. All processes must call this together.

    Through JAX's coordination service rather than its devices: nothing is compiled, and the processes of a CPU cluster
    may come minutes apart, while its collectives give up after 30 seconds.

    Args:
      value: Anything that JSON holds.
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
    """Checks that all processes do the same thing; otherwise they would train on, each with its own idea of the run.

    Args:
      facts: What must be the same everywhere: nested dicts of JSON values.

    Raises:
      UserError: in every process, if the facts of any process differ from those of process 0; names the keys.
    """
    first, *others = gather(facts)
    for process, other in enumerate(others, start=1):
        if found := differences(first, other, ""):
            values = "; ".join(f"{key} is {here} in process 0, {there} in {process}" for key, here, there in found)
            raise UserError(f"all processes must run the same thing, but {values}")


def in_first_process(action: Callable[[], None]) -> None:
    """Calls `action` in process 0 only.

    Raises:
      UserError: in every process, if `action` raises it.
    """
    message = None
    if jax.process_index() == 0:
        try:
            action()
        except UserError as error:
            if jax.process_count() == 1:
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
    """Prints a line to stderr and ends this process at once, and with it all processes that `watch_peers`.

    Nothing is torn down: interrupting a compilation leaves XLA's threads running, and Python's finalization under them
    crashes; and JAX's own shutdown would wait minutes for processes that are waiting for this one.

    Args:
      status: Exit status.
      line: What happened.
    """
    _ending.acquire()
    print(line, file=sys.stderr)
    service = _service()
    if service.client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process failed first
            service.client.key_value_set(_FAILED, json.dumps([service.process_id, status, line]))
    _leave(status)


def end_after(error: Exception) -> NoReturn:
    """Ends this process, and its peers, after an exception that is not a `UserError`: with a traceback and one line.

    If the exception only says that another process is gone, which a CPU's collectives notice at once, there is just the
    line. On accelerators JAX notices after 100 seconds without a heartbeat, or at once if process 0 is gone, and aborts
    this process with a page of C++ messages, which Python cannot intercept.
    """
    line = " ".join(str(error).split())[:300]
    if isinstance(error, jax.errors.JaxRuntimeError) and any(words in line for words in _GONE):
        time.sleep(3.0)  # if the other one called `end`, the thread of `watch_peers` repeats its line and ends us
        end(1, f"error: lost contact with another process: {line}")
    traceback.print_exception(error)
    end(1, f"error: {type(error).__name__}: {line}")


def watch_peers() -> None:
    """Starts a thread that ends this process, with one line, soon after another process has called `end`.

    Without it, this process would wait for the other one in a collective: for ever, or until JAX aborts it with a page
    of C++ messages.
    """
    client, over = _service().client, threading.Event()
    if client is None:
        return

    def watch() -> None:
        while not over.wait(1.0):
            try:
                process, status, line = json.loads(client.key_value_try_get(_FAILED))
            except jax.errors.JaxRuntimeError:  # NOT_FOUND, the usual answer
                continue
            if _ending.acquire(blocking=False):
                print(f"process {process} ended this run: {line}", file=sys.stderr)
                _leave(status)
            return

    thread = threading.Thread(target=watch, name="watch_peers", daemon=True)
    thread.start()
    # Last registered, first called: no request is under way when JAX closes its client.
    atexit.register(lambda: (over.set(), thread.join()))


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    service = _service()
    if service.client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            service.client.wait_at_barrier(_LEAVING, 10_000)
        if service.process_id == 0:
            time.sleep(1.0)  # the coordination service lives here, and JAX aborts processes that lose it
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


def _service() -> Any:
    """Returns the state of JAX's coordination service. Its client is None in a run of one process."""
    from jax._src import distributed  # it has no public name

    return distributed.global_state

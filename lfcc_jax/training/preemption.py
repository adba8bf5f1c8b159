"""Notices that a run was told to stop (SIGTERM), so that it can save itself first."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax


class Preempted(Exception):  # noqa: N818 - it is no error: the run goes on when it is started again
    """The run was told to stop, and has saved itself. The same command goes on from there."""


@contextlib.contextmanager
def watch_sigterm() -> Iterator[threading.Event]:
    """Yields an event that is set once SIGTERM arrives.

    It is never set outside the main thread (a notebook's worker, say), where Python cannot listen; nor with several
    processes, where JAX listens, so that all stop at the same step: see `Checkpoints.reached_preemption`.
    """
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)

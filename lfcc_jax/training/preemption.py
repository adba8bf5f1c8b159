"""Notices that a run was told to stop (SIGTERM, Ctrl-C), so that it can save itself first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax


class Preempted(Exception):  # noqa: N818 - it is no error: the run goes on when it is started again
    """The run was told to stop, and has saved itself. The same command goes on from there."""


@contextlib.contextmanager
def watch_signals() -> Iterator[threading.Event]:
    """Yields an event that is set once SIGTERM or SIGINT (Ctrl-C) arrives. A second one acts as it would have before.

    It is never set outside the main thread (a notebook's worker, say), where Python cannot listen; nor with several
    processes, where JAX listens for SIGTERM, so that all stop at the same step: see `Checkpoints.reached_preemption`.
    """
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield told
        return

    def listen(number: int, frame: Any) -> None:
        del frame
        told.set()
        signal.signal(number, before[number])

    before = {number: signal.signal(number, listen) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

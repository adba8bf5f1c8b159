"""Stopping a run on request (SIGTERM, Ctrl-C): all of its processes after the same step, so that it can be saved."""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# JAX's service that agrees on a step counts through the life of the process, so a second run must not begin anew.
_asked = itertools.count(1)


class Preempted(Exception):  # noqa: N818 - not an error: the same command resumes the run
    """The run was told to stop, and has saved itself. The same command resumes it."""


class StopRequest:
    """Whether any process of the run was told to stop.

    With several processes, SIGTERM goes to JAX's preemption service, which picks the next count that no process has
    reached yet. So processes that are some steps apart stop after the same one, without waiting for each other.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def is_set(self) -> bool:
        """Returns the same answer in every process. Each must ask once after each call of the training step."""
        if jax.process_count() == 1:
            return self.signal is not None
        # A count of its own rather than the step: a call may make many steps, and the chosen one would be skipped.
        return multihost_utils.reached_preemption_sync_point(next(_asked))


@contextlib.contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Yields a request to stop that SIGTERM and SIGINT (Ctrl-C) set. A second signal gets the default handling.

    A signal that comes too late to stop the run is sent again afterwards. Outside the main thread (a notebook's worker,
    say), Python cannot listen, and a run of one process is never told to stop.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def listen(number: int, frame: Any) -> None:
        del frame
        request.signal = number
        signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    # With several processes SIGTERM is left to JAX, which listens for it since `jax.distributed.initialize`.
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    wakeup = signal.set_wakeup_fd(-1)  # that of `answer_interrupts`
    before = {number: signal.signal(number, listen) for number in numbers}
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        if request.signal is not None and sys.exception() is None and jax.process_count() == 1:
            signal.raise_signal(request.signal)


def answer_interrupts(answer: Callable[[], None]) -> None:
    """Calls `answer` in a thread as soon as Ctrl-C is pressed, except within `watch_signals`.

    Python would raise KeyboardInterrupt in the main thread, between two of its own instructions. A compilation is one,
    for minutes; and if it comes within one of JAX's garbage collection callbacks, it is printed and dropped.

    Args:
      answer: Ends the process.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as shells do in the background
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGINT, lambda number, frame: None)

    def listen() -> None:
        while os.read(reader, 1) != bytes([signal.SIGINT]):
            pass
        answer()

    threading.Thread(target=listen, name="answer_interrupts", daemon=True).start()

"""Stopping a run on SIGTERM or Ctrl-C: all processes stop after the same step and save a checkpoint."""

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

# JAX's preemption service never resets its counter, so a second run in this process must continue the count.
_sync_count = itertools.count(1)


class Preempted(Exception):  # noqa: N818 - not an error: the same command resumes the run
    """The run was stopped and saved a checkpoint. The same command resumes it."""


class StopRequest:
    """Whether any process of the run received a signal to stop.

    With several processes, SIGTERM goes to JAX's preemption service, which picks the next count that no process has
    reached. So processes that are some steps apart stop after the same one, without waiting for each other.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def is_set(self) -> bool:
        """Returns the same in every process. Each must call this once after each call of the training step."""
        if jax.process_count() == 1:
            return self.signal is not None
        # Counts calls rather than steps: a call may run many steps and skip the chosen one.
        return multihost_utils.reached_preemption_sync_point(next(_sync_count))


@contextlib.contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Yields a request to stop that SIGTERM and SIGINT (Ctrl-C) set. A second signal gets the previous handling.

    The signal is answered on standard error at once. One that arrives too late to stop the run is raised again
    afterward. Outside the main thread, for example in a notebook's worker, Python cannot handle signals, and a run of
    one process never stops early.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        request.signal = number
        with contextlib.suppress(OSError):  # not through Python's streams, which the signal may have interrupted
            os.write(2, b"stopping after the steps in progress, with a checkpoint; a second signal stops at once\n")
        signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    # With several processes, `jax.distributed.initialize` has installed JAX's handler of SIGTERM.
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    wakeup = signal.set_wakeup_fd(-1)  # set by `answer_interrupts`
    before = {number: signal.signal(number, handle) for number in numbers}
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

    Python raises KeyboardInterrupt in the main thread between bytecode instructions, and a compilation is a single
    instruction that may take minutes. Within one of JAX's garbage collection callbacks, it is printed and dropped.

    Args:
      answer: Ends the process.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # shells make background programs ignore it
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

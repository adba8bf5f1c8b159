"""The timer of the benchmarks."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def best_seconds(
    programs: Mapping[Any, Callable[[], object]], rounds: int, *, warm_up: bool = False
) -> dict[Any, float]:
    """Returns the fastest call of each program, in seconds.

    Programs take turns, so that a machine that slows down slows all of them; compare only times of one call.

    Args:
      programs: Functions to time, by name. JAX arrays in their results are waited for.
      rounds: Number of timed calls of each program.
      warm_up: Whether to precede each timed call by an untimed one.
    """
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(rounds):
        for name, program in programs.items():
            if warm_up:
                jax.block_until_ready(program())
            began = time.perf_counter()
            jax.block_until_ready(program())
            best[name] = min(best[name], time.perf_counter() - began)
    return best

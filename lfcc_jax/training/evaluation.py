"""Evaluation over every example of a split, exactly once each."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from lfcc_jax.training.sharding import to_global


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    variables: Any,
    teacher_variables: Any,
    batches: Iterable[dict[str, Any]],
    mesh: Mesh,
) -> dict[str, float]:
    """Returns the mean of each metric over all examples.

    Args:
      step: a jitted evaluation step; see `make_eval_step`.
      variables: of the student.
      teacher_variables: of the teacher, or None.
      batches: this process's share of each padded global batch.
      mesh: where to put them.
    """
    totals: dict[str, float] = {}
    ahead: list[dict[str, jax.Array]] = []
    for batch in batches:
        ahead.append(step(variables, teacher_variables, to_global(batch, mesh)))
        if len(ahead) > 2:  # waiting for an earlier batch keeps the whole split from piling up on the devices
            _add(totals, ahead.pop(0))
    for sums in ahead:
        _add(totals, sums)
    count = totals.pop("count")
    return {name: total / count for name, total in totals.items()}


def _add(totals: dict[str, float], sums: dict[str, jax.Array]) -> None:
    for name, value in jax.device_get(sums).items():
        totals[name] = totals.get(name, 0.0) + float(value)

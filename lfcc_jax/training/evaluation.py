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
    sums = [step(variables, teacher_variables, to_global(batch, mesh)) for batch in batches]
    totals = {name: sum(float(s[name]) for s in jax.device_get(sums)) for name in sums[0]}
    count = totals.pop("count")
    return {name: total / count for name, total in totals.items()}

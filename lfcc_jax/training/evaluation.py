"""Evaluation over every example of a split, exactly once each."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lfcc_jax.training.sharding import to_global


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    variables: Any,
    teacher_variables: Any,
    batches: Iterable[dict[str, Any]],
    mesh: Mesh,
) -> dict[str, float]:
    """Returns metrics over all examples: those of a student alone, and with a teacher those that compare the two.

    =================== ============================================================================================
    `accuracy`          share of the examples whose class has the largest logit
    `top5`              share of the examples whose class is among the five largest logits
    `loss`              mean cross-entropy with the labels, in nats
    `calibration_error` how far confidence is from accuracy, mean over 15 bins of it (Guo et al., 2017)
    `teacher_accuracy`  as `accuracy`
    `agreement`         share of the examples for which both networks predict one class
    `kl`                mean divergence of the student's prediction from the teacher's, in nats
    `cka/stage1` ...    linear CKA of both networks' maps; see `lfcc_jax.spectrum.linear_cka`. 0 if it is undefined.
    =================== ============================================================================================

    Args:
      step: a jitted evaluation step; see `make_eval_step`.
      variables: of the student.
      teacher_variables: of the teacher, or None.
      batches: this process's share of each padded global batch.
      mesh: where to put them.
    """
    totals: dict[str, np.ndarray] = {}
    ahead: list[dict[str, jax.Array]] = []
    for batch in batches:
        ahead.append(step(variables, teacher_variables, to_global(batch, mesh)))
        if len(ahead) > 2:  # waiting for an earlier batch keeps the whole split from piling up on the devices
            _add(totals, ahead.pop(0))
    for sums in ahead:
        _add(totals, sums)
    count = totals.pop("count")
    return {name: _metric(name, total, count) for name, total in sorted(totals.items())}


def _add(totals: dict[str, np.ndarray], sums: dict[str, jax.Array]) -> None:
    for name, value in jax.device_get(sums).items():
        totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)


def _metric(name: str, total: np.ndarray, count: np.ndarray) -> float:
    if name.startswith("cka/"):
        between, student, teacher = total
        return float(between / np.sqrt(student * teacher)) if min(student, teacher) > 0 else 0.0
    if name == "calibration_error":
        total = np.abs(total).sum()
    return float(total / count)

"""Evaluation over every example of a split, exactly once each."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lfcc_jax.cka import hsic_terms
from lfcc_jax.losses import cross_entropy, kd
from lfcc_jax.methods import teach
from lfcc_jax.models import Network
from lfcc_jax.training.sharding import to_global
from lfcc_jax.training.step import Batch, Metrics, to_float

CALIBRATION_BINS = 15


def make_eval_step(
    student: Network, teacher: Network | None, prepare: Callable[[jax.Array], jax.Array] = to_float
) -> Callable[[Any, Any, Batch], Metrics]:
    """Returns `step(student_variables, teacher_variables, batch) -> sums` over the examples whose `mask` is True.

    Sums, with `count` among them, are what adds up over batches of different fill; `evaluate` makes metrics
    of them. Those of `calibration_error` are `[CALIBRATION_BINS]`, those of each `cka/...` are `[3]`.

    Args:
      student: the network that is evaluated.
      teacher: the network that it is compared with, or None.
      prepare: makes float images in [0, 1] of uint8 ones.
    """

    def step(variables: Any, teacher_variables: Any, batch: Batch) -> Metrics:
        images, labels, mask = prepare(batch["image"]), batch["label"], batch["mask"]
        logits, features = student.apply(variables, images, train=False)
        guess = logits.argmax(-1)
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
        values = {
            "count": jnp.ones_like(labels),
            "accuracy": guess == labels,
            "top5": (best == labels[:, None]).any(axis=-1),
            "loss": cross_entropy(logits, labels),
        }
        sums = {"calibration_error": _overconfidence(logits, labels, mask)}
        if teacher is not None:
            taught = teach(teacher, teacher_variables, images)
            teacher_guess = taught.logits.argmax(-1)
            values |= {
                "teacher_accuracy": teacher_guess == labels,
                "agreement": guess == teacher_guess,
                "kl": kd(logits, taught.logits),
            }
            if labels.shape[0] >= 4:
                maps = sorted(name for name in features.keys() & taught.features.keys() if features[name].ndim == 4)
                sums |= {f"cka/{name}": hsic_terms(features[name], taught.features[name], mask) for name in maps}
        return sums | {name: jnp.sum(v, dtype=jnp.float32, where=mask) for name, v in values.items()}

    return step


def _overconfidence(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns for each bin of confidence by how much it exceeds the hits, summed over the bin's examples."""
    confidence = jax.nn.softmax(logits).max(-1)
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS) - 1, 0).astype(jnp.int32)
    excess = jnp.where(mask, confidence - (logits.argmax(-1) == labels), 0)
    return jnp.sum(jax.nn.one_hot(bins, CALIBRATION_BINS) * excess[:, None], axis=0)


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
    `cka/stage1` ...    linear CKA of both networks' maps; see `lfcc_jax.cka.linear_cka`. 0 if it is undefined.
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

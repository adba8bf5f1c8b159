"""Evaluation over every example of a split, exactly once each, of a student alone and beside its teacher."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lfcc_jax.cka import hsic_terms
from lfcc_jax.data import to_float
from lfcc_jax.losses import cross_entropy, kd
from lfcc_jax.methods import teach
from lfcc_jax.models import Network
from lfcc_jax.training.sharding import batch_sharding, replicated, to_global
from lfcc_jax.training.step import Batch, Metrics

CALIBRATION_BINS = 15
# CKA is an average over groups of this many images, of the first so many images.
_CKA_GROUP, _CKA_IMAGES = 64, 1024


class Evaluator:
    """Evaluates a student, and compares it to its teacher.

    The teacher's predictions are computed at the first evaluation and kept on the devices, split like the batches:
    4 bytes for each image and class. Only CKA, which compares feature maps, runs the teacher again, on the first 1,024
    images.

    =================== ============================================================================================
    `accuracy`          fraction of the examples whose class has the largest logit
    `top5`              fraction of the examples whose class is among the five largest logits
    `loss`              mean cross-entropy with the labels, in nats
    `calibration_error` gap between confidence and accuracy, mean over 15 bins of confidence (Guo et al., 2017)
    `teacher_accuracy`  accuracy of the teacher
    `agreement`         fraction of the examples for which both networks predict the same class
    `kl`                mean KL divergence of the student's prediction from the teacher's, in nats
    `cka/stage1` ...    linear CKA of both networks' maps on the first 1,024 images; see `lfcc_jax.cka`. 0 if undefined.
    =================== ============================================================================================

    Args:
      student: the network that is evaluated.
      teacher: the network that it is compared with, or None.
      teacher_variables: the teacher's variables, or None.
      read_batches: returns an iterable over this process's part of each padded global batch: `image`, `label`, `mask`.
      mesh: devices to evaluate on.
      prepare: makes float images in [0, 1] of uint8 ones.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network | None,
        teacher_variables: Any,
        read_batches: Callable[[], Iterable[Batch]],
        mesh: Mesh,
        prepare: Callable[[jax.Array], jax.Array] = to_float,
    ):
        self._teacher_variables, self._read_batches, self._mesh = teacher_variables, read_batches, mesh
        compare = make_comparison_step(student, teacher, mesh, prepare) if teacher is not None else None
        placement = (replicated(mesh), batch_sharding(mesh))
        self._compare = compare and jax.jit(compare, out_shardings=placement)
        self._evaluate = jax.jit(make_eval_step(student, prepare), out_shardings=replicated(mesh))
        self._predictions: list[jax.Array] = []  # of the teacher, one array a batch

    def __call__(self, variables: Any) -> dict[str, float]:
        """Returns metrics over all examples for a student's variables."""
        totals: dict[str, np.ndarray] = {}
        ahead: list[Metrics] = []
        seen = 0
        for i, batch in enumerate(self._read_batches()):
            batch = to_global(batch, self._mesh)
            if self._compare is None:
                sums = self._evaluate(variables, batch)
            else:
                if seen < _CKA_IMAGES or i == len(self._predictions):
                    sums, logits = self._compare(variables, self._teacher_variables, batch)
                    if i == len(self._predictions):
                        self._predictions.append(logits)
                if seen >= _CKA_IMAGES:  # at the first evaluation too: a resumed run gets the same numbers, bit for bit
                    sums = self._evaluate(variables, batch | {"teacher_logits": self._predictions[i]})
            seen += batch["label"].shape[0]
            ahead.append(sums)
            if len(ahead) > 2:  # waiting for an earlier batch keeps the whole split from piling up on the devices
                _add(totals, ahead.pop(0))
        for sums in ahead:
            _add(totals, sums)
        count = totals.pop("count")
        return {name: _metric(name, total, count) for name, total in sorted(totals.items())}


def make_eval_step(
    student: Network, prepare: Callable[[jax.Array], jax.Array] = to_float
) -> Callable[[Any, Batch], Metrics]:
    """Returns `step(variables, batch) -> sums` over the examples whose `mask` is True.

    Sums, with `count` among them, add up over batches of different fill; `Evaluator` makes metrics of them. Those of
    `calibration_error` are `[CALIBRATION_BINS]`. With `teacher_logits` in the batch, the student is compared to them.

    Args:
      student: the network that is evaluated.
      prepare: makes float images in [0, 1] of uint8 ones.
    """

    def step(variables: Any, batch: Batch) -> Metrics:
        logits, _ = student.apply(variables, prepare(batch["image"]), train=False)
        return _sums(logits, batch.get("teacher_logits"), batch)

    return step


def make_comparison_step(
    student: Network, teacher: Network, mesh: Mesh, prepare: Callable[[jax.Array], jax.Array] = to_float
) -> Callable[[Any, Any, Batch], tuple[Metrics, jax.Array]]:
    """Returns `step(variables, teacher_variables, batch) -> (sums, teacher_logits)`.

    The sums are those of `make_eval_step` with the teacher's logits, and those of each `cka/...`, `[3]`.

    Args:
      student: the network that is evaluated.
      teacher: the network that it is compared with.
      mesh: devices that the batch is split over.
      prepare: makes float images in [0, 1] of uint8 ones.
    """

    def step(variables: Any, teacher_variables: Any, batch: Batch) -> tuple[Metrics, jax.Array]:
        images = prepare(batch["image"])
        logits, features = student.apply(variables, images, train=False)
        taught = teach(teacher, teacher_variables, images)
        sums = _sums(logits, taught.logits, batch)
        if images.shape[0] >= 4:
            maps = sorted(name for name in features.keys() & taught.features.keys() if features[name].ndim == 4)
            for name in maps:
                sums[f"cka/{name}"] = _grouped_hsic(features[name], taught.features[name], batch["mask"], mesh)
        return sums, taught.logits

    return step


def _sums(logits: jax.Array, teacher_logits: jax.Array | None, batch: Batch) -> Metrics:
    labels, mask = batch["label"], batch["mask"]
    guess = logits.argmax(-1)
    # The label's rank among the logits; a sort would gather the batch.
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = (logits == own) & (jnp.arange(logits.shape[-1])[None] < labels[:, None])
    rank = jnp.sum(~(logits <= own) | before, axis=-1)
    values = {
        "count": jnp.ones_like(labels),
        "accuracy": guess == labels,
        "top5": rank < 5,
        "loss": cross_entropy(logits, labels),
    }
    if teacher_logits is not None:
        teacher_guess = teacher_logits.argmax(-1)
        values |= {
            "teacher_accuracy": teacher_guess == labels,
            "agreement": guess == teacher_guess,
            "kl": kd(logits, teacher_logits),
        }
    sums = {name: jnp.sum(v, dtype=jnp.float32, where=mask) for name, v in values.items()}
    return sums | {"calibration_error": _overconfidence(logits, labels, mask)}


def _overconfidence(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns confidence minus accuracy, summed over the examples of each bin of confidence."""
    confidence = jax.nn.softmax(logits).max(-1)
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS) - 1, 0).astype(jnp.int32)
    excess = jnp.where(mask, confidence - (logits.argmax(-1) == labels), 0)
    return jnp.sum(jax.nn.one_hot(bins, CALIBRATION_BINS) * excess[:, None], axis=0)


def _grouped_hsic(x: jax.Array, y: jax.Array, mask: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns the sum of `hsic_terms` over groups of examples.

    The terms are unbiased for groups of any size. A group never spans devices, so no map is sent anywhere; only if a
    device holds fewer than 8 examples, the first 64 of the batch are one group instead.
    """
    local = x.shape[0] // mesh.size
    if local < 8:
        return hsic_terms(x[:_CKA_GROUP], y[:_CKA_GROUP], mask[:_CKA_GROUP])
    group = max(n for n in range(1, _CKA_GROUP + 1) if local % n == 0)
    group = group if group >= 8 else local

    def terms(*arrays: jax.Array) -> jax.Array:
        grouped = (a.reshape(-1, group, *a.shape[1:]) for a in arrays)
        return jax.lax.psum(jax.vmap(hsic_terms)(*grouped).sum(0), mesh.axis_names)

    split = batch_sharding(mesh).spec
    return jax.shard_map(terms, mesh=mesh, in_specs=split, out_specs=PartitionSpec())(x, y, mask)


def _add(totals: dict[str, np.ndarray], sums: Metrics) -> None:
    for name, value in jax.device_get(sums).items():
        totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)


def _metric(name: str, total: np.ndarray, count: np.ndarray) -> float:
    if name.startswith("cka/"):
        between, student, teacher = total
        return float(between / math.sqrt(student * teacher)) if min(student, teacher) > 0 else 0.0
    if name == "calibration_error":
        total = np.abs(total).sum()
    return float(total / count)

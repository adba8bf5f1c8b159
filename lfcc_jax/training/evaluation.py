"""Evaluation of a student, alone or next to its teachers, on every example of a split exactly once."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lfcc_jax.cka import hsic_terms
from lfcc_jax.data import to_float
from lfcc_jax.losses import cross_entropy, kd
from lfcc_jax.methods import teach
from lfcc_jax.models import Adapter, Network
from lfcc_jax.training.config import at
from lfcc_jax.training.parts import Parts
from lfcc_jax.training.sharding import batch_sharding, replicated, to_global
from lfcc_jax.training.step import Batch, Metrics

CALIBRATION_BINS = 15
# Number of images per group, over which CKA is averaged, and number of images that it uses in all.
_CKA_GROUP, _CKA_IMAGES = 64, 1024


class Evaluator:
    """Evaluates a student, and compares it to each of its teachers.

    A teacher's predictions are computed in the first evaluation and kept on the devices, split like the batches: 4
    bytes per image and class. Only CKA, which compares feature maps, runs the teacher again, on the first 1,024 images.

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

    Without labels, there are only the last three. Without logits of the teacher, there are no `teacher_accuracy`,
    `agreement` and `kl`. In both cases there is `cka/pooled`. With several teachers, their names are part of these:
    `teacher_accuracy@dino`, `cka@dino/stage1`.

    Args:
      student: Network to evaluate.
      teachers: Networks to compare it with, by name; a single one is called "".
      teacher_variables: The variables of each of them.
      read_batches: Returns an iterable over this process's part of each padded global batch: `image`, `label`, `mask`.
      mesh: Devices to evaluate on.
      prepare: Converts uint8 images to floats in [0, 1].
      images_at_once: Images that each device passes through a network at a time; see `parts.Parts`.
    """

    def __init__(
        self,
        student: Network | Adapter,
        teachers: Mapping[str, Network | Adapter],
        teacher_variables: Mapping[str, Any],
        read_batches: Callable[[], Iterable[Batch]],
        mesh: Mesh,
        prepare: Callable[[jax.Array], jax.Array] = to_float,
        images_at_once: int = -1,
    ):
        self._teacher_variables, self._read_batches, self._mesh = teacher_variables, read_batches, mesh
        parts = Parts(mesh, images_at_once)
        compare = make_comparison_step(student, teachers, mesh, prepare, parts) if teachers else None
        placement = (replicated(mesh), batch_sharding(mesh))
        self._compare = compare and jax.jit(compare, out_shardings=placement)
        self._evaluate = jax.jit(make_eval_step(student, prepare, parts), out_shardings=replicated(mesh))
        self._predicts = any(teacher.num_classes > 0 for teacher in teachers.values())
        self._predictions: list[dict[str, jax.Array]] = []  # the teachers' logits, for each batch

    def __call__(self, variables: Any) -> dict[str, float]:
        """Returns metrics over all examples for a student's variables."""
        totals: dict[str, np.ndarray] = {}
        pending: list[Metrics] = []
        num_images = 0
        for i, batch in enumerate(self._read_batches()):
            batch = to_global(batch, self._mesh)
            comparing = self._compare is not None and num_images < _CKA_IMAGES
            predicting = self._predicts and i == len(self._predictions)
            if comparing or predicting:
                sums, logits = self._compare(variables, self._teacher_variables, batch)
                if predicting:
                    self._predictions.append(logits)
            if not comparing:  # in the first evaluation too, so resumed runs get identical numbers
                known = {"teacher_logits": self._predictions[i]} if self._predicts else {}
                sums = self._evaluate(variables, batch | known)
            num_images += batch["mask"].shape[0]
            pending.append(sums)
            if len(pending) > 2:  # bounds the number of batches on the devices
                _add(totals, pending.pop(0))
        for sums in pending:
            _add(totals, sums)
        count = totals.pop("count")
        return {name: _metric(name, total, count) for name, total in sorted(totals.items())}


def make_eval_step(
    student: Network | Adapter,
    prepare: Callable[[jax.Array], jax.Array] = to_float,
    parts: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Callable[[Any, Batch], Metrics]:
    """Returns `step(variables, batch) -> sums` over the examples whose `mask` is True.

    The sums, which include `count`, add up over batches; `Evaluator` turns them into metrics. `calibration_error` is
    `[CALIBRATION_BINS]`. If the batch has `teacher_logits`, by teacher, the student is compared to them.

    Args:
      student: Network to evaluate.
      prepare: Converts uint8 images to floats in [0, 1].
      parts: A `parts.Parts`, which says how many images pass through a network at a time; by default all.
    """

    def step(variables: Any, batch: Batch) -> Metrics:
        logits = parts(lambda images: student.apply(variables, prepare(images), train=False)[0])(batch["image"])
        return _sums(logits, batch.get("teacher_logits", {}), batch)

    return step


def make_comparison_step(
    student: Network | Adapter,
    teachers: Mapping[str, Network | Adapter],
    mesh: Mesh,
    prepare: Callable[[jax.Array], jax.Array] = to_float,
    parts: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Callable[[Any, Mapping[str, Any], Batch], tuple[Metrics, dict[str, jax.Array]]]:
    """Returns `step(variables, teacher_variables, batch) -> (sums, teacher_logits)`, with dicts by teacher.

    The sums are those of `make_eval_step` with the teachers' logits, and `[3]` for each `cka/...`.

    Args:
      student: Network to evaluate.
      teachers: Networks to compare it with, by name; a single one is called "".
      mesh: Devices that the batch is split over.
      prepare: Converts uint8 images to floats in [0, 1].
      parts: As in `make_eval_step`.
    """

    def step(
        variables: Any, teacher_variables: Mapping[str, Any], batch: Batch
    ) -> tuple[Metrics, dict[str, jax.Array]]:
        images = prepare(batch["image"])
        logits, features = parts(lambda images: student.apply(variables, images, train=False))(images)
        targets = {name: teach(teacher, teacher_variables[name], images, parts) for name, teacher in teachers.items()}
        teacher_logits = {name: target.logits for name, target in targets.items() if target.logits is not None}
        sums = _sums(logits, teacher_logits, batch)
        for teacher, target in targets.items() if images.shape[0] >= 4 else ():
            names = sorted(features.keys() & target.features.keys())
            maps = [name for name in names if features[name].ndim == target.features[name].ndim == 4]
            compared = target.logits is not None and "label" in batch
            for name in maps if compared or "pooled" not in names else [*maps, "pooled"]:
                terms = _grouped_hsic(features[name], target.features[name], batch["mask"], mesh)
                sums[f"{at('cka', teacher)}/{name}"] = terms
        return sums, teacher_logits

    return step


def _sums(logits: jax.Array | None, teacher_logits: Mapping[str, jax.Array], batch: Batch) -> Metrics:
    mask, labels = batch["mask"], batch.get("label")
    values = {"count": jnp.ones_like(mask)}
    if labels is not None:
        # Rank of the label's logit; a sort would gather the batch.
        label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        before = (logits == label_logit) & (jnp.arange(logits.shape[-1])[None] < labels[:, None])
        values |= {
            "accuracy": logits.argmax(-1) == labels,
            "top5": jnp.sum(~(logits <= label_logit) | before, axis=-1) < 5,
            "loss": cross_entropy(logits, labels),
        }
    for teacher, target in teacher_logits.items():
        if labels is not None:
            values[at("teacher_accuracy", teacher)] = target.argmax(-1) == labels
        if logits is not None and logits.shape == target.shape:
            values[at("agreement", teacher)] = logits.argmax(-1) == target.argmax(-1)
            values[at("kl", teacher)] = kd(logits, target)
    sums = {name: jnp.sum(v, dtype=jnp.float32, where=mask) for name, v in values.items()}
    return sums if labels is None else sums | {"calibration_error": _overconfidence(logits, labels, mask)}


def _overconfidence(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns confidence minus accuracy, summed over the examples of each bin of confidence."""
    confidence = jax.nn.softmax(logits).max(-1)
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS) - 1, 0).astype(jnp.int32)
    excess = jnp.where(mask, confidence - (logits.argmax(-1) == labels).astype(confidence.dtype), 0)
    return jnp.sum(jax.nn.one_hot(bins, CALIBRATION_BINS) * excess[:, None], axis=0)


def _grouped_hsic(x: jax.Array, y: jax.Array, mask: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns the sum of `hsic_terms` over groups of examples.

    The terms are unbiased for groups of any size. A group never spans devices, so no feature maps are communicated;
    only if each device has fewer than 8 examples, the first 64 of the batch are one group instead.
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
    if name.startswith(("cka/", "cka@")):
        between, student, teacher = total
        return float(between / math.sqrt(student * teacher)) if min(student, teacher) > 0 else 0.0
    if name == "calibration_error":
        total = np.abs(total).sum()
    return float(total / count)

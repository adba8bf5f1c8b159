"""InfoNCE between the codes of two networks, with the negatives of the global batch on any number of devices."""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lfcc_jax.errors import UserError, unknown
from lfcc_jax.losses.numerics import MASKED_LOGIT, inverse_root, zero_masked
from lfcc_jax.precision import widen

NEGATIVES = ("teacher", "both", "symmetric")


def info_nce(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch dim"],
    *,
    temperature: float | Float[Array, ""],
    negatives: Literal["teacher", "both", "symmetric"] = "teacher",
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
    chunk_size: int | None = None,
    where: Bool[Array, " batch"] | None = None,
    labels: Int[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Computes the InfoNCE loss of each example: its student code must pick out its own teacher code.

    With cosine similarities :math:`\langle a, b \rangle = a \cdot b / (|a| |b|)` and the temperature :math:`\tau`:

    .. math::
      L_i = -\log \frac{\exp(\langle s_i, t_i \rangle / \tau)}
                       {\exp(\langle s_i, t_i \rangle / \tau) + \sum_{n \in N_i} \exp(\langle s_i, n \rangle / \tau)}

    ============ =================================================================================
    negatives    :math:`N_i`, over the other examples j of the global batch
    ============ =================================================================================
    "teacher"    :math:`t_j`
    "both"       :math:`t_j` and :math:`s_j`
    "symmetric"  :math:`t_j`; averaged with the loss of :math:`t_i` against :math:`s_j`
    ============ =================================================================================

    The negatives are those of the global batch in each of four layouts, which agree up to float32 rounding:

    - Under `jax.jit`, with the defaults: the arguments are the global batch, sharded or not.
    - Inside `jax.shard_map` with `axis_name`: the arguments are this device's part of the batch. One all-gather brings
      the other devices' codes; the gradient adds one reduce-scatter, or nothing if the teacher's codes are constant.
    - With `ring=True` as well: the codes travel around a ring of devices instead, and each device processes one part
      at a time. For batches whose logits or gathered codes do not fit in memory.
    - With `chunk_size`, in any of these: the logits are computed, and recomputed for the gradient, for that many
      negatives at a time, so that memory is proportional to `chunk_size` instead of the batch.

    Everything is computed in float32. Matrix products use the default precision of JAX, which rounds their factors to
    bfloat16 on TPUs; `jax.default_matmul_precision("float32")` is more accurate and slower.

    Args:
      student: Codes of the student, any floating dtype. A code of zeros has cosine 0 with everything and no gradient.
      teacher: Codes of the teacher for the same examples. A gradient reaches them; see `jax.lax.stop_gradient`.
      temperature: Temperature, positive. To learn it, pass `jnp.exp(log_temperature)`.
      negatives: Which codes serve as negatives.
      axis_name: Mesh axis, or axes, over which the batch is split, inside `jax.shard_map`.
      ring: Whether codes travel around a ring of devices instead of being gathered. Requires `axis_name`.
      chunk_size: Number of negatives to process at a time.
      where: Mask of the examples that count. Masked examples get loss 0, are never negatives, and may contain NaN.
      labels: Class of each example. Examples of the same class are not negatives.

    Returns:
      The loss of each example in nats, float32, without a reduction.

    Raises:
      UserError: if shapes differ, a number is not positive, `negatives` is unknown, or `ring` lacks `axis_name`.

    Examples:
      >>> codes = jnp.eye(4)
      >>> print(info_nce(codes, codes, temperature=0.5).round(4))  # log(1 + 3 exp(-1 / 0.5))
      [0.3408 0.3408 0.3408 0.3408]

      The same over the devices of a mesh:

      >>> from functools import partial
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> batch = jax.P("data")
      >>> loss = partial(info_nce, temperature=0.5, axis_name="data")
      >>> print(jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=batch, out_specs=batch))(codes, codes).round(4))
      [0.3408 0.3408 0.3408 0.3408]

    References:
      van den Oord et al, `Representation Learning with Contrastive Predictive Coding
      <https://arxiv.org/abs/1807.03748>`_, 2018

      Tian et al, `Contrastive Representation Distillation <https://arxiv.org/abs/1910.10699>`_, 2019

    .. seealso::
      :func:`lfcc_jax.losses.info_nce_many` for several codes of one batch,
      :func:`lfcc_jax.losses.lfcc_loss` for feature maps.
    """
    return info_nce_many(
        (student,),
        (teacher,),
        temperature=temperature,
        negatives=negatives,
        axis_name=axis_name,
        ring=ring,
        chunk_size=chunk_size,
        where=where,
        labels=labels,
    )[0]


def info_nce_many(
    students: Sequence[Float[Array, "batch _"]],
    teachers: Sequence[Float[Array, "batch _"]],
    *,
    temperature: float | Float[Array, ""],
    negatives: Literal["teacher", "both", "symmetric"] = "teacher",
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
    chunk_size: int | None = None,
    where: Bool[Array, " batch"] | None = None,
    labels: Int[Array, " batch"] | None = None,
) -> Float[Array, "codes batch"]:
    """Computes the InfoNCE loss of each example for several codes at once, with one collective for all of them.

    The same as `jnp.stack([info_nce(s, t, ...) for s, t in zip(students, teachers)])`.

    Args:
      students: Codes of the student. Their dimensions may differ.
      teachers: Codes of the teacher, with the same shapes.
      temperature: As in `info_nce`.
      negatives: As in `info_nce`.
      axis_name: As in `info_nce`.
      ring: As in `info_nce`.
      chunk_size: As in `info_nce`.
      where: As in `info_nce`.
      labels: As in `info_nce`.

    Returns:
      The loss of each code and example in nats, float32.

    Raises:
      UserError: if shapes differ, a number is not positive, `negatives` is unknown, or `ring` lacks `axis_name`.

    Examples:
      >>> codes = [jnp.eye(4), jnp.ones((4, 2))]
      >>> print(info_nce_many(codes, codes, temperature=0.5).round(4))
      [[0.3408 0.3408 0.3408 0.3408]
       [1.3863 1.3863 1.3863 1.3863]]
    """
    _check_codes(students, teachers)
    order = sorted(range(len(students)), key=lambda code: students[code].shape[1])
    student, teacher = (jnp.concatenate([codes[i] for i in order], axis=1) for codes in (students, teachers))
    losses = info_nce_packed(
        student,
        teacher,
        [students[code].shape[1] for code in order],
        temperature=temperature,
        negatives=negatives,
        axis_name=axis_name,
        ring=ring,
        chunk_size=chunk_size,
        where=where,
        labels=labels,
    )
    # Slices and not a gather, whose gradient on an explicit mesh jax 0.12 rejects.
    rows = [order.index(code) for code in range(len(order))]
    return jnp.concatenate([losses[row : row + 1] for row in rows])


def info_nce_packed(
    student: Float[Array, "batch dims"],
    teacher: Float[Array, "batch dims"],
    lengths: Sequence[int],
    *,
    temperature: float | Float[Array, ""],
    negatives: Literal["teacher", "both", "symmetric"] = "teacher",
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
    chunk_size: int | None = None,
    where: Bool[Array, " batch"] | None = None,
    labels: Int[Array, " batch"] | None = None,
) -> Float[Array, "codes batch"]:
    """Computes `info_nce_many` of codes that are side by side in one array, which compiles to fewer operations.

    Args:
      student: Codes of the student, one after the other.
      teacher: Codes of the teacher.
      lengths: Length of each code, in ascending order: codes of equal length are one matrix product.
      temperature: As in `info_nce`.
      negatives: As in `info_nce`.
      axis_name: As in `info_nce`.
      ring: As in `info_nce`.
      chunk_size: As in `info_nce`.
      where: As in `info_nce`.
      labels: As in `info_nce`.

    Returns:
      The loss of each code and example in nats, float32.

    Raises:
      UserError: as `info_nce`, or if the lengths are not ascending or do not add up to the number of columns.
    """
    batch = student.shape[0]
    _check_options(batch, temperature, negatives, axis_name, ring, chunk_size, where, labels)
    if list(lengths) != sorted(lengths) or {sum(lengths)} != {student.shape[1], teacher.shape[1]}:
        raise UserError(
            f"`lengths` must be ascending and add up to the columns of both codes, {student.shape[1]} and "
            f"{teacher.shape[1]}, got {list(lengths)}"
        )
    if where is not None:
        student, teacher = (zero_masked(x, where) for x in (student, teacher))
    anchor, positive = _by_length(student, lengths), _by_length(teacher, lengths)
    # Codes that serve as negatives, and are sent to other devices: the student's only if needed.
    keys = [teacher] if negatives == "teacher" else [teacher, student]
    # Anchors and positives of the softmaxes, and the indices in `keys` of their negatives.
    softmaxes = [(anchor, positive, [0, 1] if negatives == "both" else [0])]
    if negatives == "symmetric":
        softmaxes.append((positive, anchor, [1]))
    anchors = [(codes, _inverse_norms(codes) / temperature) for codes, _, _ in softmaxes]
    scales = [scale * _inverse_norms(other) for (_, scale), (_, other, _) in zip(anchors, softmaxes, strict=True)]
    positives = jnp.concatenate([_products(anchor, positive) * scale for scale in scales])
    log_sums_of = _negatives_log_sums(lengths, [key_indices for _, _, key_indices in softmaxes])
    if chunk_size is not None:
        log_sums_of = _in_chunks(log_sums_of, chunk_size, here=axis_name is not None)

    codes = jnp.concatenate(keys, axis=1)
    marks = {"index": jnp.arange(batch)}
    if where is not None:
        marks["where"] = where
    if labels is not None:
        marks["labels"] = labels
    if axis_name is None:
        log_sums = log_sums_of(anchors, marks, _replicated(codes), jax.tree.map(_replicated, marks))
    else:
        marks["index"] += jax.lax.axis_index(axis_name) * batch
        if ring:
            log_sums = jax.nn.logsumexp(_around_the_ring(log_sums_of, axis_name, anchors, marks, codes, marks), axis=0)
        else:
            gathered = {
                name: jax.lax.all_gather(x, axis_name, tiled=True) for name, x in marks.items() if name != "index"
            }
            codes = jax.lax.all_gather(codes, axis_name, tiled=True)
            log_sums = log_sums_of(anchors, marks, codes, {"index": jnp.arange(codes.shape[0]), **gathered})

    losses = jnp.logaddexp(positives, log_sums) - positives
    if negatives == "symmetric":
        losses = sum(jnp.split(losses, 2)) / 2
    return losses if where is None else jnp.where(where[None, :], losses, 0)


# Packed codes, as one array `[batch, codes, length]` for each length.
_Codes = list[Array]


def _by_length(x: Float[Array, "batch dims"], lengths: Sequence[int]) -> _Codes:
    counts = collections.Counter(lengths)
    ends = list(itertools.accumulate(length * count for length, count in counts.items()))
    parts = zip(jnp.split(x, ends[:-1], axis=1), counts.items(), strict=True)
    return [widen(part.reshape(x.shape[0], count, length)) for part, (length, count) in parts]


def _products(a: _Codes, b: _Codes) -> Float[Array, "codes batch"]:
    """Returns the inner products of the codes of equal rows."""
    return jnp.concatenate([jnp.sum(x * y, axis=-1).T for x, y in zip(a, b, strict=True)])


def _all_products(a: _Codes, b: _Codes) -> Float[Array, "codes rows columns"]:
    """Returns the inner products of the codes of each row of `a` with those of each row of `b`."""
    return jnp.concatenate([jnp.einsum("icd,jcd->cij", x, y) for x, y in zip(a, b, strict=True)])


def _inverse_norms(codes: _Codes) -> Float[Array, "codes batch"]:
    """Returns the inverse lengths of codes; 0 for zeros, which get no gradient."""
    return inverse_root(_products(codes, codes))


# Per-example arrays other than the codes: "index" in the global batch and, if given, "where" and "labels".
_Marks = dict[str, Array]
# Codes, and the inverse of their lengths and the temperature, `[codes, batch]`.
_Anchors = tuple[_Codes, Array]
# (anchors, their marks, key codes, their marks) -> logsumexp of the logits over the negatives among these keys, for
# each softmax and anchor. Blocks of keys are combined by another logsumexp.
_LogSums = Callable[[list[_Anchors], _Marks, Array, _Marks], Float[Array, "softmaxes batch"]]


def _negatives_log_sums(lengths: Sequence[int], key_indices: list[list[int]]) -> _LogSums:
    def log_sums_of(anchors: list[_Anchors], anchor_marks: _Marks, codes: Array, marks: _Marks) -> Array:
        negative = anchor_marks["index"][:, None] != marks["index"][None, :]
        if "where" in marks:
            negative &= marks["where"][None, :]
        if "labels" in marks:
            negative &= anchor_marks["labels"][:, None] != marks["labels"][None, :]
        parts = jnp.split(codes, codes.shape[1] // sum(lengths), axis=1)
        keys = [_by_length(part, lengths) for part in parts]
        # Logits are divided by the lengths, so that no array of scaled codes is written.
        key_scales = [_inverse_norms(key) for key in keys]

        def log_sum(anchor: _Anchors, index: int) -> Float[Array, "codes batch"]:
            codes, scale = anchor
            logits = _all_products(codes, keys[index]) * scale[:, :, None] * key_scales[index][:, None, :]
            return jax.nn.logsumexp(jnp.where(negative[None], logits, MASKED_LOGIT), axis=2)

        return jnp.concatenate(
            [
                functools.reduce(jnp.logaddexp, [log_sum(anchor, i) for i in indices])
                for anchor, indices in zip(anchors, key_indices, strict=True)
            ]
        )

    return log_sums_of


def _in_chunks(log_sums_of: _LogSums, size: int, here: bool) -> _LogSums:
    """Returns `log_sums_of` for `size` keys at a time, with their logits recomputed for the gradient.

    `here` is whether all keys are on this device.
    """

    def chunked(anchors: list[_Anchors], anchor_marks: _Marks, codes: Array, marks: _Marks) -> Array:
        rows = codes.shape[0]
        padding = -rows % size
        if padding:
            marks = {"where": jnp.ones(rows, bool), **marks}  # padded with False: never negatives

        def split(x: Array) -> Array:
            x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
            # If XLA places the keys, a chunk is every n-th key, some from each device: contiguous keys would lie on one
            # or two devices, and XLA would gather the whole batch for each chunk. If all are here, contiguous keys need
            # no copy.
            return x.reshape(-1, size, *x.shape[1:]) if here else jnp.moveaxis(x.reshape(size, -1, *x.shape[1:]), 1, 0)

        chunks = jax.tree.map(split, (codes, marks))
        chunk_log_sums = jax.checkpoint(lambda chunk: log_sums_of(anchors, anchor_marks, *chunk))
        return jax.nn.logsumexp(jax.lax.map(chunk_log_sums, chunks), axis=0)

    return chunked


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _around_the_ring(
    log_sums_of: _LogSums,
    axis_name: str | tuple[str, ...],
    anchors: list[_Anchors],
    anchor_marks: _Marks,
    codes: Array,
    marks: _Marks,
) -> Float[Array, "devices softmaxes batch"]:
    """Sends each device's keys around the ring; returns the log sums over each device's keys.

    The gradient sends them around a second time. Automatic differentiation would store every block, which is the
    gathered array that a ring avoids.
    """

    def step(block: tuple[Array, _Marks], _: None) -> tuple[tuple[Array, _Marks], Array]:
        return _to_next(block, axis_name), log_sums_of(anchors, anchor_marks, *block)

    last, log_sums = jax.lax.scan(step, (codes, marks), length=jax.lax.axis_size(axis_name) - 1)
    return jnp.concatenate([log_sums, log_sums_of(anchors, anchor_marks, *last)[None]])


def _ring_forward(
    log_sums_of: _LogSums, axis_name: str | tuple[str, ...], *arguments: Any
) -> tuple[Float[Array, "devices softmaxes batch"], tuple]:
    return _around_the_ring(log_sums_of, axis_name, *arguments), arguments


def _ring_backward(
    log_sums_of: _LogSums,
    axis_name: str | tuple[str, ...],
    arguments: tuple,
    cotangents: Float[Array, "devices _ batch"],
) -> tuple:
    anchors, anchor_marks, codes, marks = arguments

    def step(carry: tuple, cotangent: Array) -> tuple[tuple, None]:
        anchors_grad, codes_grad, codes, marks = carry
        _, vjp = jax.vjp(lambda anchors, codes: log_sums_of(anchors, anchor_marks, codes, marks), anchors, codes)
        anchors_step, codes_step = vjp(cotangent)
        anchors_grad = jax.tree.map(jnp.add, anchors_grad, anchors_step)
        # The gradient of a block travels with it, and returns once every device has added its part.
        (codes_grad, codes), marks = _to_next(((codes_grad + codes_step, codes), marks), axis_name)
        return (anchors_grad, codes_grad, codes, marks), None

    zeros = jax.tree.map(jnp.zeros_like, (anchors, codes))
    (anchors_grad, codes_grad, _, _), _ = jax.lax.scan(step, (*zeros, codes, marks), cotangents)
    return anchors_grad, None, codes_grad, None


_around_the_ring.defvjp(_ring_forward, _ring_backward)


def _to_next(block: tuple[Any, _Marks], axis_name: str | tuple[str, ...]) -> tuple[Any, _Marks]:
    """Sends a block to the next device of the ring; the indices of its examples follow without communication."""
    devices = jax.lax.axis_size(axis_name)
    codes, marks = block
    index = marks["index"]
    others = {name: x for name, x in marks.items() if name != "index"}
    send = functools.partial(
        jax.lax.ppermute, axis_name=axis_name, perm=[(i, (i + 1) % devices) for i in range(devices)]
    )
    codes, others = jax.tree.map(send, (codes, others))
    return codes, {"index": (index - index.shape[0]) % (devices * index.shape[0]), **others}


def _replicated(x: Array) -> Array:
    """Gathers an array whose sharding is part of its type; under `AxisType.Auto`, it is left to XLA."""
    sharding = jax.typeof(x).sharding
    if all(axes is None for axes in sharding.spec):
        return x
    # The array's own mesh, which need not be the one of `jax.set_mesh`.
    return jax.reshard(x, jax.NamedSharding(sharding.mesh, jax.P(*[None] * x.ndim)))


def check_marks(batch: int, **marks: Array | None) -> None:
    """Checks that every array of `marks` has one value per example.

    Raises:
      UserError: if one does not have the shape `[batch]`.
    """
    for name, given in marks.items():
        if given is not None and given.shape != (batch,):
            raise UserError(f"`{name}` must have shape [{batch}], one value per example, got shape {list(given.shape)}")


def _check_codes(students: Sequence[Array], teachers: Sequence[Array]) -> None:
    if len(students) != len(teachers) or not students:
        raise UserError(
            f"`students` and `teachers` must have the same nonzero length, got {len(students)} and {len(teachers)}"
        )
    batch = students[0].shape[0] if students[0].ndim else None
    for student, teacher in zip(students, teachers, strict=True):
        if student.ndim != 2 or student.shape != teacher.shape or student.shape[0] != batch:
            raise UserError(
                "student and teacher codes must have the same shape [batch, dim], with one batch for all codes, "
                f"got {list(student.shape)} and {list(teacher.shape)}"
            )


def _check_options(
    batch: int,
    temperature: Any,
    negatives: str,
    axis_name: str | tuple[str, ...] | None,
    ring: bool,
    chunk_size: int | None,
    where: Array | None,
    labels: Array | None,
) -> None:
    if negatives not in NEGATIVES:
        raise unknown("choice of negatives", negatives, NEGATIVES, "negatives")
    check_marks(batch, where=where, labels=labels)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise UserError(f"`temperature` must be positive, got {temperature!r}")
    if ring and axis_name is None:
        raise UserError("`axis_name` must be given with ring=True, inside jax.shard_map")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"`chunk_size` must be positive, got {chunk_size!r}")

"""InfoNCE between the codes of two networks, against the negatives of the whole batch wherever they live."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lfcc_jax.errors import UserError, unknown

NEGATIVES = ("teacher", "both", "symmetric")

# A logit that no softmax sees. Finite, because the gradient of a logsumexp over -inf alone is nan.
_NEVER = -1e30
# The square of a norm under which a code counts as zero.
_SQUARED_ZERO = 1e-24

# The keys that anchors are compared with. They travel between devices together: {"codes": [keys, dim], "index": [keys],
# and, where the caller gave them, "where": [keys] and "labels": [keys]}.
_Block = dict[str, Array]


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
    r"""Computes the InfoNCE loss of each example: how surely its student code picks out its own teacher code.

    With cosine similarities :math:`\langle a, b \rangle = a \cdot b / (|a| |b|)` and the temperature :math:`\tau`:

    .. math::
      L_i = -\log \frac{\exp(\langle s_i, t_i \rangle / \tau)}
                       {\exp(\langle s_i, t_i \rangle / \tau) + \sum_{n \in N_i} \exp(\langle s_i, n \rangle / \tau)}

    ============ =================================================================================
    negatives    :math:`N_i`, over the other examples j of the global batch
    ============ =================================================================================
    "teacher"    :math:`t_j`
    "both"       :math:`t_j` and :math:`s_j`
    "symmetric"  :math:`t_j`; and the mean is taken with the loss of :math:`t_i` against :math:`s_j`
    ============ =================================================================================

    The negatives are those of the global batch in each of four layouts, which agree to float32 rounding:

    - Under `jax.jit`, with the defaults: the arguments are the global batch, sharded or not, and XLA does the rest.
    - Inside `jax.shard_map` with `axis_name`: the arguments are this device's part of the batch. One all-gather brings
      the other devices' codes; the gradient adds one reduce-scatter, or nothing if the teacher's codes are constant.
    - With `ring=True` as well: the codes go round the devices instead, one neighbour at a time, and each part is dealt
      with as it comes. For batches whose logits or gathered codes are too large.
    - With `chunk_size`, in any of these: the logits are made and remade for that many negatives at a time, for memory
      in proportion to `chunk_size` instead of the batch.

    Args:
      student: codes of the student, of any length and floating dtype. A code of zeros has cosine 0 with everything, and
        no gradient.
      teacher: codes of the teacher for the same examples. They are not detached: see `jax.lax.stop_gradient`.
      temperature: above 0. To learn it, give `jnp.exp(log_temperature)`.
      negatives: which codes an example is told apart from.
      axis_name: the mesh axis, or axes, over which the batch is split, inside `jax.shard_map`.
      ring: whether codes go round a ring of devices instead of being gathered. Needs `axis_name`.
      chunk_size: how many negatives to deal with at a time.
      where: which examples count. The others lose 0 and are nobody's negatives.
      labels: classes. An example of the same class is nobody's negative.

    Returns:
      The loss of each example in nats, float32, without a reduction.

    Raises:
      UserError: if an argument makes no sense.

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
    """Computes the InfoNCE loss of each example for several codes at once, which share one message between devices.

    The same as `jnp.stack([info_nce(s, t, ...) for s, t in zip(students, teachers)])`, with one collective for all.

    Args:
      students: codes of the student. Their lengths may differ.
      teachers: as many codes of the teacher, each as long as its partner.
      temperature: as in `info_nce`.
      negatives: as in `info_nce`.
      axis_name: as in `info_nce`.
      ring: as in `info_nce`.
      chunk_size: as in `info_nce`.
      where: as in `info_nce`.
      labels: as in `info_nce`.

    Returns:
      The loss of each code and example in nats, float32.

    Raises:
      UserError: if an argument makes no sense.

    Examples:
      >>> codes = [jnp.eye(4), jnp.ones((4, 2))]
      >>> print(info_nce_many(codes, codes, temperature=0.5).round(4))
      [[0.3408 0.3408 0.3408 0.3408]
       [1.3863 1.3863 1.3863 1.3863]]
    """
    _check(students, teachers, temperature, negatives, axis_name, ring, chunk_size, where, labels)
    count, batch = len(students), students[0].shape[0]
    # Each softmax has anchors, positives, and keys: places in `keys`, the codes that other examples are told apart by.
    # Student codes are among them, and are sent to other devices, only if they are somebody's negatives.
    keys = [*teachers] if negatives == "teacher" else [*teachers, *students]
    softmaxes = [(students[c], teachers[c], [c, count + c] if negatives == "both" else [c]) for c in range(count)]
    if negatives == "symmetric":
        softmaxes += [(teachers[c], students[c], [count + c]) for c in range(count)]

    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    here: _Block = {"codes": jnp.concatenate(keys, axis=1), "index": first + jnp.arange(batch)}
    if where is not None:
        here["where"] = where
    if labels is not None:
        here["labels"] = labels

    anchors = [_unit(anchor) for anchor, _, _ in softmaxes]
    positives = [
        jnp.sum(anchor * _unit(positive), axis=1) / temperature
        for anchor, (_, positive, _) in zip(anchors, softmaxes, strict=True)
    ]
    ends = list(itertools.accumulate(key.shape[1] for key in keys))

    def add_negatives(log_sums: list[Array], block: _Block) -> list[Array]:
        """Adds the negatives among a block of keys to the logarithm of each softmax's denominator."""
        negative = here["index"][:, None] != block["index"][None, :]
        if "where" in block:
            negative &= block["where"][None, :]
        if "labels" in block:
            negative &= here["labels"][:, None] != block["labels"][None, :]
        units = [_unit(codes) for codes in jnp.split(block["codes"], ends[:-1], axis=1)]
        log_sums = list(log_sums)
        for i, (anchor, (_, _, places)) in enumerate(zip(anchors, softmaxes, strict=True)):
            for place in places:
                cosine = jnp.einsum("id,jd->ij", anchor, units[place], preferred_element_type=anchor.dtype)
                logits = jnp.where(negative, cosine / temperature, _NEVER)
                log_sums[i] = jnp.logaddexp(log_sums[i], jax.nn.logsumexp(logits, axis=1))
        return log_sums

    if chunk_size is not None:
        add_negatives = _in_chunks(add_negatives, chunk_size)
    # A softmax starts from its positive, so that it is never empty, and meets its negatives in any order.
    if ring:
        log_sums = _around_the_ring(add_negatives, positives, here, axis_name)
    elif axis_name is not None:
        log_sums = add_negatives(positives, jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), here))
    else:
        log_sums = add_negatives(positives, jax.tree.map(_replicated, here))

    losses = jnp.stack(log_sums) - jnp.stack(positives)
    if negatives == "symmetric":
        losses = (losses[:count] + losses[count:]) / 2
    return losses if where is None else jnp.where(where[None, :], losses, 0)


def _unit(codes: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
    """Scales codes to length one, in float32 or wider; zeros stay zeros, and get no gradient."""
    codes = codes.astype(jnp.promote_types(codes.dtype, jnp.float32))
    squared = jnp.sum(jnp.square(codes), axis=1, keepdims=True)
    nonzero = squared > _SQUARED_ZERO
    return codes * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, squared, 1)), 0)


_AddNegatives = Callable[[list[Array], _Block], list[Array]]


def _in_chunks(add_negatives: _AddNegatives, size: int) -> _AddNegatives:
    """Returns `add_negatives` that takes `size` keys at a time, and remakes their logits for the gradient."""

    def add_chunks(log_sums: list[Array], block: _Block) -> list[Array]:
        rows = block["index"].shape[0]
        padding = -rows % size
        if padding:
            block = {"where": jnp.ones(rows, bool), **block}  # what is padded, with False, is nobody's negative
            block = {name: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for name, x in block.items()}
        chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), block)
        step = jax.checkpoint(lambda log_sums, chunk: (add_negatives(log_sums, chunk), None))
        return jax.lax.scan(step, log_sums, chunks)[0]

    return add_chunks


def _around_the_ring(
    add_negatives: _AddNegatives, log_sums: list[Array], block: _Block, axis_name: str | tuple[str, ...]
) -> list[Array]:
    """Passes each device's block to its neighbour until everybody has met every block."""
    devices = jax.lax.axis_size(axis_name)
    to_next = [(i, (i + 1) % devices) for i in range(devices)]
    add_negatives = jax.checkpoint(add_negatives)

    def step(carry: tuple[list[Array], _Block], _: None) -> tuple[tuple[list[Array], _Block], None]:
        log_sums, block = carry
        block = jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, to_next), block)
        return (add_negatives(log_sums, block), block), None

    log_sums = add_negatives(log_sums, block)
    return jax.lax.scan(step, (log_sums, block), length=devices - 1)[0][0]


def _replicated(x: Array) -> Array:
    """Gathers an array whose sharding is part of its type; where XLA decides (`AxisType.Auto`), it is left to XLA."""
    sharding = jax.typeof(x).sharding
    if all(axes is None for axes in sharding.spec):
        return x
    return jax.reshard(x, jax.P(*[None] * x.ndim))


def _check(
    students: Sequence[Array],
    teachers: Sequence[Array],
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
    if len(students) != len(teachers) or not students:
        raise UserError(
            f"Give as many student codes as teacher codes, at least one; got {len(students)} and {len(teachers)}."
        )
    batch = students[0].shape[0] if students[0].ndim else None
    for student, teacher in zip(students, teachers, strict=True):
        if student.ndim != 2 or student.shape != teacher.shape or student.shape[0] != batch:
            raise UserError(
                "A student code and its teacher code have the same shape [batch, dim], and all codes the same batch; "
                f"got {list(student.shape)} and {list(teacher.shape)}."
            )
    for name, given in (("where", where), ("labels", labels)):
        if given is not None and given.shape != (batch,):
            raise UserError(
                f"{name}: one value for each of the {batch} examples is needed; got shape {list(given.shape)}."
            )
    if isinstance(temperature, int | float) and not temperature > 0:
        raise UserError(f"temperature: a number above 0 is needed; got {temperature!r}.")
    if ring and axis_name is None:
        raise UserError(
            "ring=True passes codes between the devices of a mesh axis: give its axis_name, inside jax.shard_map."
        )
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size: at least 1 negative at a time is needed; got {chunk_size!r}.")

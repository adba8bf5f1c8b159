"""LFCC: a contrastive loss between the low-frequency components of both networks' features.

A reconstruction. The equations of the paper (Wu et al, arXiv 2405.18524) are not public beyond its abstract, which
names multi-scale low-pass filters, a compact space and a sample-level contrastive loss. Everything else is our choice.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lfcc_jax.errors import UserError, unknown
from lfcc_jax.filters import KINDS, apply_operator_pairs, compact_grids
from lfcc_jax.learned_filter import learned_compact_grids, learned_filter_init
from lfcc_jax.losses.contrastive import check_marks, info_nce_packed
from lfcc_jax.losses.numerics import zero_masked
from lfcc_jax.precision import wide_dtype

LFCC_KINDS = (*KINDS, "learned", "none")
PROJECTORS = ("both", "student", "mlp")

_RESHAPE = "Reshape tokens to their grid, without the class token."

# Added to variances, as in batch normalization.
_VARIANCE_FLOOR = 1e-5

# {"student": {stage: projector}, "teacher": {stage: projector}}, each projector {layer: {"kernel", "bias"}}; and, for
# learned filters, {"filters": {"student": {stage: filter}, "teacher": {stage: filter}}}.
Params = dict[str, Any]
Size = tuple[int, int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Points:
    """What `lfcc_loss` reads of the maps of a stage; made by `lfcc_points`.

    Attributes:
      values: The points of all grids, grid after grid, `[batch, points, channels]`, float32 or wider.
      kind: Low-pass filter that made them.
      grids: Grids that were asked for.
      fitting: Those that fit into the maps, in the order of `values`.
      dtype: Dtype of the maps.
    """

    values: Array
    kind: str = dataclasses.field(metadata={"static": True})
    grids: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    fitting: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `values`."""
        return self.values.shape


def lfcc_init(
    key: PRNGKeyArray,
    student_channels: Mapping[str, int],
    teacher_channels: Mapping[str, int],
    width: int,
    *,
    projector: Literal["both", "student", "mlp"] = "both",
    learned_sizes: Mapping[str, tuple[Size, Size]] | None = None,
    grids: Sequence[int] = (1, 2, 4),
) -> Params:
    """Returns the trainable parameters of `lfcc_loss`: a projector for each stage, and learned filters if requested.

    Args:
      key: PRNG key.
      student_channels: Number of channels of each stage of the student, for example `{"stage3": 256}`.
      teacher_channels: The same for the teacher's stages, which must have the same names.
      width: Number of channels of the space into which both networks are projected.
      projector: "both" projects both networks linearly; "student" projects only the student, to the teacher's channels
        (`width` is then unused); "mlp" adds a hidden layer of `width` units before each linear projection.
      learned_sizes: For `kind="learned"`, height and width of each stage's maps in the student and in the teacher:
        `{"stage4": ((7, 7), (14, 14))}`.
      grids: For `kind="learned"`, as in `lfcc_loss`.

    Returns:
      A pytree of plain dictionaries and float32 arrays, trained with the student.

    Raises:
      UserError: if the two networks have different stages, a number of channels is not an int, or the projector is
        unknown.

    Examples:
      >>> params = lfcc_init(jax.random.key(0), {"stage4": 512}, {"stage4": 768}, width=128)
      >>> jax.tree.map(jnp.shape, params["student"])
      {'stage4': {'out': {'bias': (128,), 'kernel': (512, 128)}}}
    """
    if projector not in PROJECTORS:
        raise unknown("projector", projector, PROJECTORS)
    if set(student_channels) != set(teacher_channels) or not student_channels:
        raise UserError(
            "`student_channels` and `teacher_channels` must have the same stages, at least one, "
            f"got {sorted(student_channels)} and {sorted(teacher_channels)}"
        )
    for argument, channels in (("student_channels", student_channels), ("teacher_channels", teacher_channels)):
        for stage, count in channels.items():
            if not isinstance(count, int | np.integer):
                shape = getattr(count, "shape", ())
                got = f"an array of shape {shape}; pass its last axis, {shape[-1]}" if shape else repr(count)
                raise UserError(f"{argument}['{stage}'] must be the number of channels, an int, got {got}")
    if width < 1:
        raise UserError(f"`width` must be positive, got {width!r}")

    def dense(key: PRNGKeyArray, channels_in: int, channels_out: int) -> dict[str, Array]:
        kernel = jax.nn.initializers.lecun_normal()(key, (channels_in, channels_out))
        return {"kernel": kernel, "bias": jnp.zeros(channels_out)}

    def project(key: PRNGKeyArray, channels_in: int, channels_out: int) -> dict[str, dict[str, Array]]:
        if projector != "mlp":
            return {"out": dense(key, channels_in, channels_out)}
        hidden, out = jax.random.split(key)
        return {"hidden": dense(hidden, channels_in, width), "out": dense(out, width, channels_out)}

    stages = sorted(student_channels)
    keys = iter(jax.random.split(key, 2 * len(stages)))
    params: Params = {"student": {}, "teacher": {}}
    for stage in stages:
        channels_out = teacher_channels[stage] if projector == "student" else width
        params["student"][stage] = project(next(keys), student_channels[stage], channels_out)
        if projector != "student":
            params["teacher"][stage] = project(next(keys), teacher_channels[stage], channels_out)
    if learned_sizes is not None:
        if set(learned_sizes) != set(stages):
            raise UserError(f"`learned_sizes` must have the stages {stages}, got {sorted(learned_sizes)}")
        params["filters"] = {"student": {}, "teacher": {}}
        for stage, (student_size, teacher_size) in learned_sizes.items():
            fitting = _fitting(grids, student_size, teacher_size, stage)
            params["filters"]["student"][stage] = learned_filter_init(student_size, fitting)
            params["filters"]["teacher"][stage] = learned_filter_init(teacher_size, fitting)
    return params


def lfcc_loss(
    params: Params,
    student_features: Mapping[str, Float[Array, "batch ..."]],
    teacher_features: Mapping[str, Float[Array, "batch ..."] | Points],
    *,
    kind: str = "box",
    grids: Sequence[int] = (1, 2, 4),
    temperature: float | Float[Array, ""] = 0.1,
    negatives: Literal["teacher", "both", "symmetric"] = "teacher",
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
    chunk_size: int | None = None,
    where: Bool[Array, " batch"] | None = None,
    labels: Int[Array, " batch"] | None = None,
    standardize: bool = True,
) -> Float[Array, " batch"]:
    r"""Computes the LFCC distillation loss of each example, the mean over stages and grids.

    With F the feature map of a stage, A_k the low-pass operator onto a k x k grid, P the projector of that stage:

    .. math::
      s &= \mathrm{standardize}(P_s(A_k F_s A_k')) \\
      t &= \mathrm{standardize}(P_t(A_k \, \mathrm{stop\_gradient}(F_t) \, A_k')) \\
      L_i(stage, k) &= -\log \mathrm{softmax}_j(\langle s_i, t_j \rangle / \tau)_i

    where :math:`\langle \cdot, \cdot \rangle` is the cosine similarity of flattened codes, j runs over the batch, and
    each element of a code is standardized to mean 0 and variance 1 over the batch.

    The maps are filtered before they are projected, which is the same for a linear P (the operators' rows sum to one)
    and cheaper. With `axis_name`, the codes of all stages and grids travel between devices in one collective. Under
    plain `jax.jit` XLA chooses, and may take several.

    This is a reconstruction: the paper's own equations are not public beyond its abstract.

    Args:
      params: Parameters from `lfcc_init`, which define the stages and their projectors.
      student_features: Feature map `[batch, height, width, channels]` of each stage. Stages not in `params` are
        ignored.
      teacher_features: Feature maps of the teacher for the same images, or their `lfcc_points` of the same `kind` and
        `grids`. Sizes and channels may differ. No gradient reaches them.
      kind: Low-pass filter: one of `lfcc_jax.filters.KINDS`; "learned" (see `lfcc_init`); or "none", an ablation that
        samples the unfiltered maps at the centers of the cells.
      grids: Grid sizes k. Each stage uses those that fit into both maps.
      temperature: Temperature, positive. To learn it, pass `jnp.exp(log_temperature)`.
      negatives: As in `info_nce`.
      axis_name: As in `info_nce`: the mesh axis over which the batch is split, inside `jax.shard_map`.
      ring: As in `info_nce`.
      chunk_size: As in `info_nce`.
      where: As in `info_nce`: mask of the examples that count. Features of the others may contain NaN.
      labels: As in `info_nce`: classes, so that examples of the same class are not negatives.
      standardize: Whether to standardize each element of a code over the batch before the cosine. This removes what all
        images have in common, which is most of a pooled map, and makes the last bias of a projector useless. It costs a
        few small all-reduces with `axis_name`. It was better in our study.

    Returns:
      The loss of each example in nats, float32, without a reduction. It is log(batch) if all images are identical.

    Raises:
      UserError: if a stage is missing, no grid fits into its maps, or an argument is invalid.

    Examples:
      >>> student = {"stage3": jnp.ones((8, 14, 14, 32)), "stage4": jnp.ones((8, 7, 7, 64))}
      >>> teacher = {"stage3": jnp.ones((8, 14, 14, 48)), "stage4": jnp.ones((8, 14, 14, 48))}
      >>> params = lfcc_init(jax.random.key(0), {"stage3": 32, "stage4": 64}, {"stage3": 48, "stage4": 48}, width=16)
      >>> loss, grads = jax.value_and_grad(lambda p: lfcc_loss(p, student, teacher).mean())(params)
      >>> print(loss.round(4))  # all eight images are identical: log(8)
      2.0794

    References:
      Wu et al, `Aligning in a Compact Space: Contrastive Knowledge Distillation between Heterogeneous Architectures
      <https://arxiv.org/abs/2405.18524>`_, 2024
    """
    # The mean over images is subtracted later, and a bias with it.
    student_codes, teacher_codes = _codes(
        params, student_features, teacher_features, kind=kind, grids=grids, where=where, last_bias=not standardize
    )
    names = sorted(student_codes, key=lambda name: student_codes[name].shape[1])
    student, teacher = (
        jnp.concatenate([codes[name] for name in names], axis=1) for codes in (student_codes, teacher_codes)
    )
    if standardize:
        # One network at a time: a teacher without a projector stays constant, and needs no collective for its gradient.
        student, teacher = (_standardized(x, axis_name, where) for x in (student, teacher))
    # Standardized codes lose little by rounding, so they are sent between devices in the dtype of the maps.
    losses = info_nce_packed(
        student.astype(_dtype_of(student_features, params)),
        teacher.astype(_dtype_of(teacher_features, params)),
        [student_codes[name].shape[1] for name in names],
        temperature=temperature,
        negatives=negatives,
        axis_name=axis_name,
        ring=ring,
        chunk_size=chunk_size,
        where=where,
        labels=labels,
    )
    return losses.mean(axis=0)


def lfcc_points(
    maps: Float[Array, "batch height width channels"], *, kind: str = "box", grids: Sequence[int] = (1, 2, 4)
) -> Points:
    """Returns what `lfcc_loss` reads of feature maps: the points of all grids that fit into them.

    For maps of 56 x 56 that is 1% of them, for 7 x 7 about half. It depends on each image alone. Compute it where the
    teacher runs, and give it to `lfcc_loss` in place of the teacher's maps, if those should not be kept.

    Args:
      maps: Feature maps of one stage.
      kind: As in `lfcc_loss`, but not "learned".
      grids: As in `lfcc_loss`.

    Raises:
      UserError: if the maps have another number of axes, no grid fits into them, or the kind is unknown.

    Examples:
      >>> lfcc_points(jnp.ones((8, 14, 14, 48))).values.shape  # 1 + 4 + 16 points
      (8, 21, 48)
    """
    if kind not in LFCC_KINDS or kind == "learned":
        raise unknown("kind of filter", kind, [known for known in LFCC_KINDS if known != "learned"], "kind")
    if maps.ndim != 4:
        raise UserError(f"`maps` must have shape [batch, height, width, channels], got {list(maps.shape)}. {_RESHAPE}")
    smallest = min(maps.shape[1:3])
    fitting = tuple(grid for grid in grids if grid <= smallest)
    if not fitting:
        raise UserError(
            f"`grids` must contain a size up to {smallest} for maps of {'x'.join(map(str, maps.shape[1:3]))}, "
            f"got {list(grids)}"
        )
    return Points(_points(maps, kind, fitting), kind, tuple(grids), fitting, maps.dtype)


def _points(maps: Array, kind: str, fitting: Sequence[int]) -> Array:
    # The mean over images can be far larger than their differences, and is subtracted later. Rounding to bfloat16
    # before that would lose the differences.
    wide = wide_dtype(maps.dtype)
    if kind == "none":
        pairs = [tuple(_samples(n, grid) for n in maps.shape[1:3]) for grid in fitting]
        return _joined(apply_operator_pairs(pairs, maps, wide))
    return _joined(compact_grids(maps, kind, fitting, wide))


def _joined(compacted: Sequence[Array]) -> Array:
    return jnp.concatenate([y.reshape(y.shape[0], -1, y.shape[-1]) for y in compacted], axis=1)


def lfcc_codes(
    params: Params,
    student_features: Mapping[str, Float[Array, "batch ..."]],
    teacher_features: Mapping[str, Float[Array, "batch ..."] | Points],
    *,
    kind: str = "box",
    grids: Sequence[int] = (1, 2, 4),
    where: Bool[Array, " batch"] | None = None,
) -> tuple[dict[str, Float[Array, "batch _"]], dict[str, Float[Array, "batch _"]]]:
    """Returns the codes that `lfcc_loss` compares, before they are standardized and scaled to length one.

    Args:
      params: As in `lfcc_loss`.
      student_features: As in `lfcc_loss`.
      teacher_features: As in `lfcc_loss`.
      kind: As in `lfcc_loss`.
      grids: As in `lfcc_loss`.
      where: As in `lfcc_loss`; the maps of masked examples are replaced with zeros.

    Returns:
      The student's and the teacher's codes by stage and grid, float32 or wider. The gradient of the latter stops before
      the features.

    Raises:
      UserError: if a stage is missing, no grid fits into its maps, or an argument is invalid.

    Examples:
      >>> features = {"stage4": jnp.ones((8, 7, 7, 64))}
      >>> params = lfcc_init(jax.random.key(0), {"stage4": 64}, {"stage4": 64}, width=16)
      >>> student_codes, _ = lfcc_codes(params, features, features)
      >>> jax.tree.map(jnp.shape, student_codes)
      {'stage4/1': (8, 16), 'stage4/2': (8, 64), 'stage4/4': (8, 256)}
    """
    return _codes(params, student_features, teacher_features, kind=kind, grids=grids, where=where, last_bias=True)


def _codes(
    params: Params,
    student_features: Mapping[str, Array],
    teacher_features: Mapping[str, Array | Points],
    *,
    kind: str,
    grids: Sequence[int],
    where: Array | None,
    last_bias: bool,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns `lfcc_codes`, without the bias of the last layer of projectors if not `last_bias`."""
    if kind not in LFCC_KINDS:
        raise unknown("kind of filter", kind, LFCC_KINDS, "kind")
    if "filters" in params and kind != "learned":
        raise UserError(f"`kind` must be 'learned' for params with learned filters, got '{kind}'")
    codes: dict[str, dict[str, Array]] = {"student": {}, "teacher": {}}
    for stage in sorted(params["student"]):
        features = {"student": student_features, "teacher": teacher_features}
        for network in features:
            if stage not in features[network]:
                raise unknown(f"stage of the {network}", stage, features[network])
        maps = {network: features[network][stage] for network in features}
        _check_maps(stage, maps, params)
        maps["teacher"] = jax.lax.stop_gradient(maps["teacher"])
        if where is not None:
            check_marks(maps["student"].shape[0], where=where)
            masked = functools.partial(zero_masked, where=where)
            maps = {network: jax.tree.map(masked, x) for network, x in maps.items()}
        if isinstance(given := maps["teacher"], Points):
            if (given.kind, set(given.grids)) != (kind, set(grids)):
                raise UserError(
                    f"{stage} of the teacher must be maps, or points of kind '{kind}' and grids {list(grids)}, got "
                    f"points of kind '{given.kind}' and grids {list(given.grids)}"
                )
            teacher_size = (max(given.fitting),) * 2
        else:
            teacher_size = given.shape[1:3]
        fitting = _fitting(grids, maps["student"].shape[1:3], teacher_size, stage)
        for network, x in maps.items():
            if isinstance(x, Points):
                ends = np.cumsum([grid**2 for grid in x.fitting])
                of_grid = dict(zip(x.fitting, jnp.split(x.values, ends[:-1], axis=1), strict=True))
                points = _joined([of_grid[grid] for grid in fitting])
            elif kind == "learned":
                if "filters" not in params:
                    raise UserError("`params` must contain filters for kind='learned': pass learned_sizes to lfcc_init")
                points = _joined(
                    learned_compact_grids(params["filters"][network][stage], x, fitting, wide_dtype(x.dtype))
                )
            else:
                points = _points(x, kind, fitting)
            # One matrix product projects the points of all grids.
            points = _project(params[network].get(stage, {}), points, last_bias)
            ends = [sum(grid**2 for grid in fitting[:i]) for i in range(1, len(fitting))]
            for grid, y in zip(fitting, jnp.split(points, ends, axis=1), strict=True):
                codes[network][f"{stage}/{grid}"] = y.reshape(y.shape[0], -1)
    return codes["student"], codes["teacher"]


def _standardized(
    codes: Float[Array, "batch dims"], axis_name: str | tuple[str, ...] | None, where: Array | None
) -> Float[Array, "batch dims"]:
    """Returns codes with mean 0 and variance 1 over the global batch."""

    def total(values: Array) -> Array:
        return values if axis_name is None else jax.lax.psum(values, axis_name)

    if where is None:
        counted, count = 1.0, codes.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    else:
        counted = where[:, None].astype(codes.dtype)
        count = jnp.maximum(total(jnp.sum(counted, axis=0, keepdims=True)), 1)
    x = codes - total(jnp.sum(codes * counted, axis=0, keepdims=True)) / count
    variance = total(jnp.sum(jnp.square(x) * counted, axis=0, keepdims=True)) / count
    return x * jax.lax.rsqrt(variance + _VARIANCE_FLOOR)


def _dtype_of(features: Mapping[str, Array | Points], params: Params) -> np.dtype:
    """Returns the widest dtype of the stages' maps."""
    return max((features[stage].dtype for stage in params["student"]), key=lambda dtype: dtype.itemsize)


def _samples(size_in: int, size_out: int) -> Float[np.ndarray, "size_out size_in"]:
    """Returns the operator that picks the sample at, or next to, the center of each of `size_out` equal cells."""
    centers = (np.arange(size_out) + 0.5) * size_in / size_out
    return np.eye(size_in, dtype=np.float32)[centers.astype(int)]


def _check_maps(stage: str, maps: Mapping[str, Array | Points], params: Params) -> None:
    for network, x in maps.items():
        if not isinstance(x, Points) and x.ndim != 4:
            raise UserError(
                f"{stage} of the {network} must have shape [batch, height, width, channels], got {list(x.shape)}. "
                f"{_RESHAPE}"
            )
        layers = params[network].get(stage)
        # A teacher without a projector has the channels that the student is projected to.
        channels = (
            layers.get("hidden", layers["out"])["kernel"].shape[0]
            if layers
            else params["student"][stage]["out"]["kernel"].shape[1]
        )
        if channels != x.shape[-1]:
            raise UserError(
                f"{stage} of the {network} must have {channels} channels in its last axis, as in params, "
                f"got shape {list(x.shape)}"
            )
    if maps["student"].shape[0] != maps["teacher"].shape[0]:
        raise UserError(
            f"{stage} must have the same batch in both networks, got {maps['student'].shape[0]} maps of the student "
            f"and {maps['teacher'].shape[0]} of the teacher"
        )


def _project(
    layers: Mapping[str, Mapping[str, Array]], x: Float[Array, "batch points channels"], last_bias: bool
) -> Float[Array, "batch points width"]:
    if not layers:  # a teacher without a projector
        return x
    if "hidden" in layers:
        x = jax.nn.relu(jnp.einsum("bnc,cd->bnd", x, layers["hidden"]["kernel"]) + layers["hidden"]["bias"][None, None])
    x = jnp.einsum("bnc,cd->bnd", x, layers["out"]["kernel"])
    return x + layers["out"]["bias"][None, None] if last_bias else x


def _fitting(grids: Sequence[int], student_size: Size, teacher_size: Size, stage: str) -> list[int]:
    """Returns the grids that fit into the maps of both networks."""
    smallest = min(*student_size, *teacher_size)
    fitting = [grid for grid in grids if grid <= smallest]
    if not fitting:
        raise UserError(
            f"`grids` must contain a size up to {smallest} for {stage}, with maps of "
            f"{'x'.join(map(str, student_size))} (student) and {'x'.join(map(str, teacher_size))} (teacher), "
            f"got {list(grids)}"
        )
    return fitting

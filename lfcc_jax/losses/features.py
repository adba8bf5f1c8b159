"""Losses between the feature maps of two networks, example by example.

Maps of different sizes are first resized to the smaller height and width, with the box filter of `lfcc_jax.filters`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.errors import unknown
from lfcc_jax.filters import apply_operator_pairs, compact, operator
from lfcc_jax.losses.numerics import unit
from lfcc_jax.precision import widen

# The smaller scales of ReviewKD's pyramid.
_HCL_GRIDS = (4, 2, 1)
VIEWS = ("spatial", "frequency")


def fitnet(
    student: Float[Array, "batch _ _ channels"], teacher: Float[Array, "batch _ _ channels"]
) -> Float[Array, " batch"]:
    r"""Computes FitNet's hint loss, per example: the mean squared error of a feature map.

    .. math::
      \frac{1}{HWC} \sum_{hwc} (f^s_{hwc} - f^t_{hwc})^2

    No gradient reaches the teacher.

    Args:
      student: Feature maps of the student, projected to the teacher's channels, any floating dtype.
      teacher: Feature maps of the teacher.

    Returns:
      The loss of each example, float32 or wider; zero where the maps agree.

    Examples:
      >>> print(fitnet(jnp.ones((2, 8, 8, 3)), jnp.zeros((2, 4, 4, 3))))
      [1. 1.]

    References:
      Romero et al., `FitNets: Hints for Thin Deep Nets <https://arxiv.org/abs/1412.6550>`_, 2015 (weight 100 at the
      second stage between CNNs; the heterogeneous benchmark uses weight 1 at all four stages).
    """
    student, teacher = match_sizes(student, teacher)
    return jnp.mean(jnp.square(student - teacher), axis=(1, 2, 3))


def at(student: Float[Array, "batch _ _ _"], teacher: Float[Array, "batch _ _ _"]) -> Float[Array, " batch"]:
    r"""Computes attention transfer, per example: where in the image the features are large.

    .. math::
      \frac{1}{HW} \Big| \frac{a(f^s)}{|a(f^s)|} - \frac{a(f^t)}{|a(f^t)|} \Big|^2, \qquad
      a(f)_{hw} = \frac{1}{C} \sum_c f_{hwc}^2

    No gradient reaches the teacher. Constant factors are those of the authors' code, which differ from the paper's.

    Args:
      student: Feature maps of the student, any floating dtype.
      teacher: Feature maps of the teacher; the number of channels may differ.

    Returns:
      The loss of each example, float32 or wider; zero where the attention maps agree.

    Examples:
      >>> x = jnp.sin(jnp.arange(96.0)).reshape(2, 4, 4, 3)
      >>> print(at(x, 10 * x).round(4))
      [0. 0.]

    References:
      Zagoruyko and Komodakis, `Paying More Attention to Attention <https://arxiv.org/abs/1612.03928>`_, 2017 (weight
      1000, summed over the stages).
    """

    def attention(x: Array) -> Array:
        return unit(jnp.mean(jnp.square(x), axis=3).reshape(x.shape[0], -1))

    student, teacher = match_sizes(student, teacher)
    return jnp.mean(jnp.square(attention(student) - attention(teacher)), axis=1)


def nst(student: Float[Array, "batch _ _ _"], teacher: Float[Array, "batch _ _ _"]) -> Float[Array, " batch"]:
    r"""Computes neuron selectivity transfer, per example: a distance between the distributions of channels.

    The squared maximum mean discrepancy with the kernel :math:`k(a, b) = (a \cdot b)^2`, over normalized channels:

    .. math::
      \mathrm{mean}_{cc'}\, k(\hat f^t_c, \hat f^t_{c'}) + \mathrm{mean}_{cc'}\, k(\hat f^s_c, \hat f^s_{c'})
      - 2\, \mathrm{mean}_{cc'}\, k(\hat f^s_c, \hat f^t_{c'}), \qquad \hat f_c = f_c / |f_c|

    No gradient reaches the teacher.

    Args:
      student: Feature maps of the student, any floating dtype.
      teacher: Feature maps of the teacher; the number of channels may differ.

    Returns:
      The loss of each example, float32 or wider; zero where the distributions agree.

    Examples:
      >>> x = jnp.sin(jnp.arange(96.0)).reshape(2, 4, 4, 3)
      >>> print(abs(nst(x[..., ::-1], x).round(4)))  # the order of channels does not matter
      [0. 0.]

    References:
      Huang and Wang, `Like What You Like: Knowledge Distill via Neuron Selectivity Transfer
      <https://arxiv.org/abs/1707.01219>`_, 2017 (weight 50, summed over the stages).
    """

    def channels(x: Array) -> Array:
        return unit(x.reshape(x.shape[0], -1, x.shape[3]), axis=1)

    def kernel(a: Array, b: Array) -> Array:
        products = jnp.einsum("bpc,bpd->bcd", a, b, precision="highest")
        return jnp.mean(jnp.square(products), axis=(1, 2))

    ours, theirs = map(channels, match_sizes(student, teacher))
    return kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs)


def vid(
    predicted: Float[Array, "batch _ _ channels"],
    teacher: Float[Array, "batch _ _ channels"],
    log_scale: Float[Array, " channels"],
) -> Float[Array, " batch"]:
    r"""Computes variational information distillation, per example: a Gaussian negative log-likelihood.

    .. math::
      \frac{1}{HWC} \sum_{hwc} \frac12 \Big[\frac{(\mu_{hwc} - f^t_{hwc})^2}{\sigma_c^2} + \log \sigma_c^2\Big], \qquad
      \sigma_c^2 = \log(1 + e^{\rho_c}) + 10^{-5}

    No gradient reaches the teacher.

    Args:
      predicted: Prediction :math:`\mu` of the teacher's maps from the student's, any floating dtype.
      teacher: Feature maps of the teacher.
      log_scale: Trainable parameter :math:`\rho`; see `vid_scale_init`.

    Returns:
      The loss of each example in nats up to a constant, float32 or wider. It can be negative.

    Examples:
      >>> x = jnp.ones((2, 4, 4, 3))
      >>> print(f"{vid(x, x, vid_scale_init(3))[0]:.4f}")  # log(5) / 2
      0.8047

    References:
      Ahn et al., `Variational Information Distillation for Knowledge Transfer <https://arxiv.org/abs/1904.05835>`_,
      2019 (weight 1, summed over the stages).
    """
    predicted, teacher = match_sizes(predicted, teacher)
    variance = (jax.nn.softplus(log_scale.astype(predicted.dtype)) + 1e-5)[None, None, None, :]
    return 0.5 * jnp.mean(jnp.square(predicted - teacher) / variance + jnp.log(variance), axis=(1, 2, 3))


def vid_scale_init(channels: int, variance: float = 5.0) -> Float[Array, " channels"]:
    """Returns the `log_scale` of `vid` for which every channel has the given variance."""
    return jnp.full((channels,), jnp.log(jnp.expm1(variance - 1e-5)), jnp.float32)


def hcl(
    student: Float[Array, "batch _ _ channels"], teacher: Float[Array, "batch _ _ channels"]
) -> Float[Array, " batch"]:
    r"""Computes ReviewKD's hierarchical context loss, per example: the error of a map at four scales.

    .. math::
      \frac{\sum_i 2^{-i}\, \mathrm{MSE}(A_{k_i} f^s A_{k_i}', A_{k_i} f^t A_{k_i}')}{\sum_i 2^{-i}}

    over the map itself (i = 0) and the smaller ones of the grids :math:`k = 4, 2, 1`. No gradient reaches the
    teacher.

    Args:
      student: Feature maps of the student, projected to the teacher's channels, any floating dtype.
      teacher: Feature maps of the teacher.

    Returns:
      The loss of each example, float32 or wider; zero where the maps agree.

    Examples:
      >>> print(hcl(jnp.ones((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 3))))
      [1. 1.]

    References:
      Chen et al., `Distilling Knowledge via Knowledge Review <https://arxiv.org/abs/2104.09044>`_, 2021 (weight 5 on
      CIFAR-100 with a warm-up of 20 epochs, 1 on ImageNet).
    """
    student, teacher = match_sizes(student, teacher)
    difference = student - teacher  # the means are linear
    total = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
    weight = weights = 1.0
    for grid in _HCL_GRIDS:
        if grid < min(student.shape[1:3]):
            weight /= 2
            weights += weight
            total += weight * jnp.mean(jnp.square(compact(difference, "box", grid)), axis=(1, 2, 3))
    return total / weights


def regression(
    student: Float[Array, "batch *_ channels"], teacher: Float[Array, "batch *_ channels"]
) -> Float[Array, " batch"]:
    r"""Computes the regression loss of UNIC, per example: direction and value of vectors, or of a map's positions.

    .. math::
      \frac{1}{2} (1 - \cos(f^s, f^t)) + \frac{1}{2D} \sum_d h(f^s_d - f^t_d)

    with the Huber loss :math:`h(x) = x^2 / 2` up to 1, :math:`|x| - 1/2` beyond; the mean over positions. No gradient
    reaches the teacher.

    Args:
      student: Vectors or feature maps of the student, projected to the teacher's channels, any floating dtype.
      teacher: Those of the teacher. The authors standardize them with running statistics of each channel.

    Returns:
      The loss of each example, float32 or wider; zero where the features agree.

    Examples:
      >>> print(regression(jnp.array([[3.0, 4.0], [0.0, 2.0]]), jnp.array([[3.0, 4.0], [2.0, 0.0]])))
      [0.   1.25]

    References:
      Sariyildiz et al., `UNIC: Universal Classification Models via Multi-teacher Distillation
      <https://arxiv.org/abs/2408.05088>`_, 2024.
    """
    if student.ndim == 4:
        student, teacher = match_sizes(student, teacher)
    student, teacher = widen(student), widen(jax.lax.stop_gradient(teacher))
    cosine = jnp.sum(unit(student) * unit(teacher), axis=-1)
    errors = jnp.abs(student - teacher)
    huber = jnp.mean(jnp.where(errors < 1, 0.5 * jnp.square(errors), errors - 0.5), axis=-1)
    return jnp.mean((0.5 * (1 - cosine) + 0.5 * huber).reshape(student.shape[0], -1), axis=1)


def dual_view(
    student: Float[Array, "batch _ _ channels"],
    teacher: Float[Array, "batch _ _ channels"],
    *,
    view: Literal[VIEWS] = "spatial",
) -> Float[Array, " batch"]:
    r"""Computes a view of ScaleKD's loss, per example: the direction of the features at each position.

    .. math::
      \sum_{hw} \Big| \frac{v(f^s)_{hw}}{|v(f^s)_{hw}|} - \frac{v(f^t)_{hw}}{|v(f^t)_{hw}|} \Big|^2

    where :math:`v(f)` is the map itself in the "spatial" view, and in the "frequency" view all of it but the lowest
    frequency: the map minus its mean over positions. It is a sum over positions, of at most 4 each. No gradient reaches
    the teacher.

    Args:
      student: Feature maps of the student, projected to the teacher's channels, any floating dtype.
      teacher: Feature maps of the teacher.
      view: "spatial" or "frequency".

    Returns:
      The loss of each example, float32 or wider; zero where the directions agree. The frequency view of maps of 1 x 1
      is zero.

    Raises:
      UserError: if `view` is unknown.

    Examples:
      >>> x = jnp.sin(jnp.arange(96.0)).reshape(2, 4, 4, 3)
      >>> print(abs(dual_view(3 * x, x).round(4)), abs(dual_view(3 * x + 7, x, view="frequency").round(4)))
      [0. 0.] [0. 0.]

    References:
      Fan et al., `ScaleKD: Strong Vision Transformers Could Be Excellent Teachers <https://arxiv.org/abs/2411.06786>`_,
      2024 (weights 0.08 and 0.06; cross-entropy and KD of temperature 1 with weight 0.5 each).
    """
    if view not in VIEWS:
        raise unknown("view", view, VIEWS)

    def directions(x: Array) -> Array:
        return unit(x - jnp.mean(x, axis=(1, 2), keepdims=True) if view == "frequency" else x)

    ours, theirs = map(directions, match_sizes(student, teacher))
    return jnp.sum(jnp.square(ours - theirs), axis=(1, 2, 3))


def match_sizes(
    student: Float[Array, "batch _ _ _"], teacher: Float[Array, "batch _ _ _"]
) -> tuple[Float[Array, "batch height width _"], Float[Array, "batch height width _"]]:
    """Shrinks both maps to the smaller height and width with the box filter.

    The losses in this module call it. Call it before a linear projection without a bias: the result is the same, and
    the projection is cheaper on the smaller map.

    Args:
      student: Maps of the student, any floating dtype.
      teacher: Maps of the teacher; the channels may differ.

    Returns:
      Both maps, float32 or wider. No gradient reaches the teacher.

    Examples:
      >>> [x.shape for x in match_sizes(jnp.ones((2, 56, 56, 64)), jnp.ones((2, 14, 14, 384)))]
      [(2, 14, 14, 64), (2, 14, 14, 384)]
    """
    maps = widen(student), widen(jax.lax.stop_gradient(teacher))
    if student.shape[1:3] == teacher.shape[1:3]:
        return maps
    rows, columns = (min(student.shape[axis], teacher.shape[axis]) for axis in (1, 2))

    def shrink(x: Array) -> Array:
        pair = operator("box", x.shape[1], rows), operator("box", x.shape[2], columns)
        return apply_operator_pairs([pair], x)[0]

    return tuple(x if x.shape[1:3] == (rows, columns) else shrink(x) for x in maps)

"""What feature maps contain: radial power spectra, the energy below a cutoff, and how alike two maps are (CKA)."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lfcc_jax.errors import UserError
from lfcc_jax.filters import apply_operators


def radial_spectrum(
    x: Float[Array, "batch height width channels"],
) -> tuple[Float[np.ndarray, " bins"], Float[Array, " bins"]]:
    r"""Computes the mean power of feature maps in rings of equal spatial frequency.

    With the Fourier transform X of a channel of a map, and the ring :math:`R_r` of the frequencies
    :math:`\sqrt{f_h^2 + f_w^2}` that round to r / min(height, width):

    .. math::
      P_r = \frac{1}{|R_r|} \sum_{(u, v) \in R_r} \frac{|X_{uv}|^2}{(height \cdot width)^2}

    averaged over examples and channels. Summed over all frequencies (not rings) this is the mean square of the map.

    Args:
      x: feature maps, channels last.

    Returns:
      The frequencies of the rings in cycles per sample, from 0 (the mean) past 0.5 into the corners of the spectrum,
      and the mean power of one frequency in each ring, float32.

    Raises:
      UserError: if `x` is not a batch of feature maps.

    Examples:
      >>> wave = jnp.cos(2 * jnp.pi * 0.25 * jnp.arange(8.0)).reshape(1, 1, 8, 1) * jnp.ones((1, 8, 1, 1))
      >>> frequencies, power = radial_spectrum(wave)
      >>> print(frequencies[power.argmax()])
      0.25
    """
    _check_map(x)
    _, height, width, _ = x.shape
    rings = np.floor(_radius(height, width) * min(height, width) + 0.5 + 1e-9).astype(int)
    present, members = np.unique(rings, return_inverse=True)
    mean_of_ring = np.eye(len(present), dtype=np.float32)[:, members.reshape(-1)]
    mean_of_ring /= mean_of_ring.sum(axis=1, keepdims=True)
    power = jnp.mean(_power(x), axis=(0, 3)).reshape(-1)
    return present / min(height, width), jnp.matmul(mean_of_ring, power, precision="highest")


def energy_below(x: Float[Array, "batch height width channels"], cutoff: float) -> Float[Array, " batch"]:
    """Computes which fraction of each feature map's energy lies at or below a spatial frequency.

    Args:
      x: feature maps, channels last.
      cutoff: in cycles per sample: 0 keeps the mean alone, 0.5 a disc that leaves out the corners of the spectrum.

    Returns:
      Fractions between 0 and 1 for each example, over all its channels, float32. A map of zeros has lost nothing: 1.

    Raises:
      UserError: if `x` is not a batch of feature maps, or the cutoff is negative.

    Examples:
      >>> print(energy_below(jnp.ones((2, 8, 8, 3)), 0.0))
      [1. 1.]
    """
    _check_map(x)
    if not cutoff >= 0:
        raise UserError(f"A cutoff is a frequency in cycles per sample, 0 or above; got {cutoff!r}.")
    power = jnp.sum(_power(x), axis=3)
    below = jnp.asarray(_radius(*x.shape[1:3]) <= cutoff * (1 + 1e-6))
    total = jnp.sum(power, axis=(1, 2))
    kept = jnp.sum(jnp.where(below[None], power, 0), axis=(1, 2))
    return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), 1)


def _power(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Returns the power at each frequency. Of the Hartley transform, whose sums over plus and minus f are Fourier's."""
    # Real, orthogonal and separable, it is a pair of matrix products like any filter.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.square(apply_operators(_hartley(x.shape[1]), _hartley(x.shape[2]), x))


@functools.lru_cache(maxsize=64)
def _hartley(n: int) -> Float[np.ndarray, "n n"]:
    angle = 2 * np.pi / n * (np.outer(np.arange(n), np.arange(n)) % n)
    return ((np.cos(angle) + np.sin(angle)) / n).astype(np.float32)


def _radius(height: int, width: int) -> Float[np.ndarray, "height width"]:
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])


def _check_map(x: Array) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(
            f"Feature maps are a floating array [batch, height, width, channels]; got {x.dtype}{list(x.shape)}."
        )


def linear_cka(x: Float[Array, "batch *_"], y: Float[Array, "batch *_"]) -> Float[Array, ""]:
    r"""Computes the linear centred kernel alignment of two representations of the same examples, unbiased.

    .. math::
      \mathrm{CKA}(x, y) = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x) \, \mathrm{HSIC}(y, y)}}

    1 for representations equal up to rotation, shift and scale; about 0 for unrelated ones. (The plain estimator is far
    from 0 for unrelated ones as soon as there are more features than examples.)

    For a data set in minibatches, add up their `hsic_terms` and give the sum to `cka_from_terms`.

    Args:
      x: one representation of at least 4 examples: feature maps, pooled features, logits.
      y: another one of the same examples; its shape past the first axis may differ.

    Returns:
      The alignment, float32. Being unbiased, it can fall a little below 0.

    Raises:
      UserError: if there are fewer than 4 examples, or not as many in `x` as in `y`.

    Examples:
      >>> x = jnp.arange(24.0).reshape(6, 2, 2, 1) ** 2
      >>> print(linear_cka(x, 5 - 3 * x).round(4))
      1.0

    References:
      Kornblith et al, `Similarity of Neural Network Representations Revisited
      <https://arxiv.org/abs/1905.00414>`_, 2019

      Nguyen et al, `Do Wide and Deep Networks Learn the Same Things? <https://arxiv.org/abs/2010.15327>`_, 2021
    """
    return cka_from_terms(hsic_terms(x, y))


def hsic_terms(
    x: Float[Array, "batch *_"], y: Float[Array, "batch *_"], where: Bool[Array, " batch"] | None = None
) -> Float[Array, "3"]:
    r"""Computes the three HSIC terms of CKA for one minibatch, unbiased, to be summed over minibatches.

    With K and L the Gram matrices of the two representations, their diagonals set to zero, and n examples:

    .. math::
      \mathrm{HSIC}(x, y) = \frac{1}{n (n - 3)} \left( \mathrm{tr}(K L) + \frac{1'K1 \; 1'L1}{(n - 1)(n - 2)}
      - \frac{2}{n - 2} 1'KL1 \right)

    Args:
      x: one representation of at least 4 examples.
      y: another one of the same examples.
      where: which examples count. With fewer than 4 of them the terms are zero.

    Returns:
      HSIC(x, y), HSIC(x, x) and HSIC(y, y), float32.

    Raises:
      UserError: if there are fewer than 4 examples, or not as many in `x` as in `y`.

    Examples:
      >>> minibatches = jnp.sin(jnp.arange(80.0)).reshape(2, 8, 5)
      >>> print(cka_from_terms(sum(hsic_terms(x, 2 * x + 1) for x in minibatches)).round(4))
      1.0

    References:
      Song et al, `Feature Selection via Dependence Maximization <https://jmlr.org/papers/v13/song12a.html>`_, 2012
    """
    if x.shape[0] != y.shape[0] or x.shape[0] < 4:
        raise UserError(
            f"CKA needs the same examples in both representations, at least 4; got {x.shape[0]} and {y.shape[0]}."
        )
    where = jnp.ones(x.shape[0], bool) if where is None else where
    k, m = _gram(x, where), _gram(y, where)
    n = jnp.sum(where, dtype=k.dtype)
    # Where 4 are too few, any count will do for a finite number, which is then not used.
    terms = jnp.stack([_hsic(*pair, jnp.maximum(n, 4)) for pair in ((k, m), (k, k), (m, m))])
    return jnp.where(n < 4, 0, terms)


def cka_from_terms(terms: Float[Array, "3"]) -> Float[Array, ""]:
    """Returns the CKA of (summed) `hsic_terms`.

    Args:
      terms: HSIC(x, y), HSIC(x, x) and HSIC(y, y), of one minibatch or summed over many.

    Returns:
      The alignment, float32.

    Examples:
      >>> print(cka_from_terms(jnp.array([1.0, 2.0, 2.0])).round(4))
      0.5
    """
    xy, xx, yy = terms
    return xy / jnp.sqrt(xx * yy)


def _gram(x: Float[Array, "batch *_"], where: Bool[Array, " batch"]) -> Float[Array, "batch batch"]:
    """Returns the inner products between examples that count, without those of an example with itself."""
    x = x.reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - jnp.mean(x, axis=0, keepdims=True)  # changes nothing but the rounding: HSIC is blind to a shift
    counts = where[:, None] & where[None, :] & ~jnp.eye(x.shape[0], dtype=bool)
    return jnp.where(counts, jnp.matmul(x, x.T, precision="highest"), 0)


def _hsic(k: Float[Array, "batch batch"], m: Float[Array, "batch batch"], n: Float[Array, ""]) -> Float[Array, ""]:
    trace = jnp.sum(k * m)
    sums = jnp.sum(k) * jnp.sum(m) / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * jnp.sum(jnp.sum(k, axis=0) * jnp.sum(m, axis=1))
    return (trace + sums - rows) / (n * (n - 3))

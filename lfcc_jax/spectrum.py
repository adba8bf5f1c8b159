"""Spectral analysis of feature maps: radial power spectra, and the energy below a cutoff."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError
from lfcc_jax.filters import apply_operators
from lfcc_jax.precision import widen


def radial_spectrum(
    x: Float[Array, "batch height width channels"],
) -> tuple[Float[np.ndarray, " bins"], Float[Array, " bins"]]:
    r"""Computes the mean power of feature maps in rings of equal spatial frequency.

    With the Fourier transform X of a channel of a map, and the ring :math:`R_r` of the frequencies
    :math:`\sqrt{f_h^2 + f_w^2}` that round to r / min(height, width):

    .. math::
      P_r = \frac{1}{|R_r|} \sum_{(u, v) \in R_r} \frac{|X_{uv}|^2}{(height \cdot width)^2}

    averaged over examples and channels. The sum over all frequencies (not rings) is the mean square of the map.

    Args:
      x: Feature maps, channels last.

    Returns:
      The frequencies of the rings in cycles per sample, from 0 (the mean) to the corners of the spectrum (above 0.5),
      and the mean power per frequency in each ring, float32.

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
    """Computes the fraction of each feature map's energy at or below a spatial frequency.

    Args:
      x: Feature maps, channels last.
      cutoff: Spatial frequency in cycles per sample: 0 is the mean only, 0.5 excludes the corners of the spectrum.

    Returns:
      One fraction per example, over all channels, float32. It is 1 for a map of zeros.

    Raises:
      UserError: if `x` is not a batch of feature maps, or the cutoff is negative.

    Examples:
      >>> print(energy_below(jnp.ones((2, 8, 8, 3)), 0.0))
      [1. 1.]
    """
    _check_map(x)
    if not cutoff >= 0:
        raise UserError(f"`cutoff` must be non-negative, got {cutoff!r}")
    power = jnp.sum(_power(x), axis=3)
    below = jnp.asarray(_radius(*x.shape[1:3]) <= cutoff * (1 + 1e-6))
    total = jnp.sum(power, axis=(1, 2))
    kept = jnp.sum(jnp.where(below[None], power, 0), axis=(1, 2))
    return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), 1)


def _power(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Returns the power of the Hartley transform. Its sums over +f and -f equal those of the Fourier transform."""
    # The Hartley transform is real, orthogonal and separable, so it is two matrix products.
    x = widen(x)
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
            f"`x` must be a floating-point array [batch, height, width, channels], got {x.dtype}{list(x.shape)}"
        )

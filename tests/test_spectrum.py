"""Spectra against numpy's FFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import compact, energy_below, radial_spectrum
from lfcc_jax.errors import UserError

SIZES = [(1, 1), (7, 7), (8, 8), (14, 14), (9, 12), (5, 3), (2, 16)]


def maps(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fourier_power(x):
    height, width = x.shape[1:3]
    power = np.abs(np.fft.fft2(x.astype(np.float64), axes=(1, 2)) / (height * width)) ** 2
    radius = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[None, :] ** 2)
    return power, radius


@pytest.mark.parametrize("size", SIZES)
def test_radial_spectrum_is_the_mean_of_numpys_fft_over_rings(size):
    x = maps(3, *size, 2)
    power, radius = fourier_power(x)
    frequencies, result = radial_spectrum(jnp.asarray(x))
    half = 1 / (2 * min(size))
    # Frequencies on the border of two rings belong to the outer one; the tolerance absorbs rounding.
    rings = [(radius >= f - half - 1e-9) & (radius < f + half - 1e-9) for f in frequencies]
    assert sum(ring.sum() for ring in rings) == radius.size
    np.testing.assert_allclose(result, [power.mean(axis=(0, 3))[ring].mean() for ring in rings], rtol=1e-5, atol=1e-9)
    # Parseval: the total power is the mean square.
    total = sum(p * float(ring.sum()) for p, ring in zip(result, rings, strict=True))
    np.testing.assert_allclose(total, np.mean(x**2, dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_energy_below_matches_numpys_fft(size, cutoff):
    x = maps(3, *size, 2) + 0.5
    power, radius = fourier_power(x)
    expected = np.where(radius[None, :, :, None] <= cutoff + 1e-9, power, 0).sum(axis=(1, 2, 3)) / power.sum(
        axis=(1, 2, 3)
    )
    np.testing.assert_allclose(energy_below(jnp.asarray(x), cutoff), expected, rtol=1e-5, atol=1e-7)


def test_energy_below_is_high_for_smooth_maps_and_one_for_zeros():
    noise = jnp.asarray(maps(2, 28, 28, 4))
    smooth = jax.image.resize(compact(noise, "dct", 4), noise.shape, "cubic")
    assert energy_below(smooth, 0.1).min() > 0.8 > 0.2 > energy_below(noise, 0.1).max()
    np.testing.assert_array_equal(energy_below(jnp.zeros((2, 4, 4, 1)), 0.1), 1)
    assert energy_below(noise.astype(jnp.bfloat16), 0.1).dtype == jnp.float32


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: radial_spectrum(jnp.ones((7, 7, 3))), r"\[batch, height, width, channels\], got float32\[7, 7, 3\]"),
        (lambda: energy_below(jnp.ones((2, 7, 7, 3)), -0.1), r"`cutoff` must be non-negative, got -0\.1"),
    ],
)
def test_spectra_reject_invalid_arguments(call, message):
    with pytest.raises(UserError, match=message):
        call()

"""Spectra against numpy's FFT, CKA against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import compact, energy_below, linear_cka, radial_spectrum
from lfcc_jax.errors import UserError
from lfcc_jax.spectrum import cka_from_terms, hsic_terms

SIZES = [(1, 1), (7, 7), (8, 8), (14, 14), (9, 12), (5, 3), (2, 16)]


def maps(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fourier_power(x):
    height, width = x.shape[1:3]
    power = np.abs(np.fft.fft2(x.astype(np.float64), axes=(1, 2)) / (height * width)) ** 2
    radius = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[None, :] ** 2)
    return power, radius


@pytest.mark.parametrize("size", SIZES)
def test_the_radial_spectrum_is_the_mean_of_numpys_fft_over_rings(size):
    x = maps(3, *size, 2)
    power, radius = fourier_power(x)
    frequencies, result = radial_spectrum(jnp.asarray(x))
    half = 1 / (2 * min(size))
    # A frequency on the border of two rings, but for rounding, is in the outer one.
    rings = [(radius >= f - half - 1e-9) & (radius < f + half - 1e-9) for f in frequencies]
    assert sum(ring.sum() for ring in rings) == radius.size
    np.testing.assert_allclose(result, [power.mean(axis=(0, 3))[ring].mean() for ring in rings], rtol=1e-5, atol=1e-9)
    # Parseval: the power of all frequencies is the mean square.
    total = sum(p * ring.sum() for p, ring in zip(result, rings, strict=True))
    np.testing.assert_allclose(total, np.mean(x**2, dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_the_energy_below_a_cutoff_is_that_of_numpys_fft(size, cutoff):
    x = maps(3, *size, 2) + 0.5
    power, radius = fourier_power(x)
    expected = np.where(radius[None, :, :, None] <= cutoff + 1e-9, power, 0).sum(axis=(1, 2, 3)) / power.sum(
        axis=(1, 2, 3)
    )
    np.testing.assert_allclose(energy_below(jnp.asarray(x), cutoff), expected, rtol=1e-5, atol=1e-7)


def test_a_smoothed_map_keeps_its_energy_low_and_zeros_have_nothing_to_lose():
    noise = jnp.asarray(maps(2, 28, 28, 4))
    smooth = jax.image.resize(compact(noise, "dct", 4), noise.shape, "cubic")
    assert energy_below(smooth, 0.1).min() > 0.8 > 0.2 > energy_below(noise, 0.1).max()
    np.testing.assert_array_equal(energy_below(jnp.zeros((2, 4, 4, 1)), 0.1), 1)
    assert energy_below(noise.astype(jnp.bfloat16), 0.1).dtype == jnp.float32


def hsic_by_definition(x, y):
    """The U-statistic of Song et al, equation 4, over every ordered quadruple of different examples."""
    k, m = x @ x.T, y @ y.T
    n = len(x)
    i, j, q, r = (a.reshape(-1) for a in np.indices((n,) * 4))
    different = (i != j) & (i != q) & (i != r) & (j != q) & (j != r) & (q != r)
    i, j, q, r = (a[different] for a in (i, j, q, r))
    return np.mean(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))


def test_hsic_is_its_definition_over_quadruples_of_examples():
    x, y = jnp.asarray(maps(7, 3) + 2), jnp.asarray(maps(7, 2, 2, 1, seed=1))
    flat = [np.asarray(a, np.float64).reshape(7, -1) for a in (x, y)]
    expected = [hsic_by_definition(flat[a], flat[b]) for a, b in ((0, 1), (0, 0), (1, 1))]
    np.testing.assert_allclose(hsic_terms(x, y), expected, rtol=1e-4, atol=1e-5)


def test_hsic_of_some_examples_is_that_of_a_batch_without_the_others():
    x, y = jnp.asarray(maps(9, 3) + 2), jnp.asarray(maps(9, 2, 2, 1, seed=1))
    where = jnp.arange(9) % 4 != 1
    np.testing.assert_allclose(hsic_terms(x, y, where), hsic_terms(x[where], y[where]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(hsic_terms(x, y, jnp.arange(9) < 3), 0)


def test_cka_is_one_for_rotations_scales_and_shifts():
    x = jnp.asarray(maps(32, 6))
    rotation = np.linalg.qr(maps(6, 6, seed=1))[0]
    np.testing.assert_allclose(linear_cka(x, 7 * x @ rotation + 100), 1, atol=1e-4)


def test_unrelated_wide_features_have_no_cka_where_the_biased_estimate_is_half():
    pairs = [[jnp.asarray(maps(16, 16, seed=2 * i + j)) for j in (0, 1)] for i in range(64)]
    # Of 64 minibatches; its spread over 20 repetitions of this is 0.02.
    assert abs(cka_from_terms(sum(hsic_terms(x, y) for x, y in pairs))) < 0.08

    def biased(x, y):
        x, y = (np.asarray(a - a.mean(axis=0, keepdims=True)) for a in (x, y))
        return np.sum((x.T @ y) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2))

    assert np.mean([biased(x, y) for x, y in pairs]) > 0.4


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: radial_spectrum(jnp.ones((7, 7, 3))), r"\[batch, height, width, channels\]; got float32\[7, 7, 3\]"),
        (lambda: energy_below(jnp.ones((2, 7, 7, 3)), -0.1), r"0 or above; got -0\.1"),
        (lambda: linear_cka(jnp.ones((3, 2)), jnp.ones((3, 2))), "at least 4; got 3 and 3"),
        (lambda: linear_cka(jnp.ones((5, 2)), jnp.ones((6, 2))), "got 5 and 6"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(call, says):
    with pytest.raises(UserError, match=says):
        call()

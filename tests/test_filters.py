"""Low-pass operators against scipy, numpy and torch, and the three implementations against one another."""

import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from lfcc_jax.errors import UserError
from lfcc_jax.filters import FINITE_KINDS, KINDS, compact, compact_grids, frequency_response, low_pass, operator

SIZES = [1, 2, 5, 7, 8, 14, 28, 56]
CUTOFFS = [0.03, 0.1, 0.25, 0.4999, 0.5]
# float32 carries 2^-24 per operation; a row has at most 56 weights, and the sum of their magnitudes is below 3.
FLOAT32 = 1e-6


def sigma_of(cutoff):
    """Returns the standard deviation of the Gaussian with response 1/2 at the cutoff: exp(-2 (pi sigma f)^2) = 1/2."""
    return np.sqrt(2 * np.log(2)) / (2 * np.pi * cutoff)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_gaussian_is_scipys_gaussian_filter_with_reflection(n, cutoff):
    expected = scipy.ndimage.gaussian_filter1d(np.eye(n), sigma_of(cutoff), axis=0, mode="reflect")
    np.testing.assert_allclose(operator("gaussian", n, n, cutoff=cutoff), expected, atol=FLOAT32)
    other_boundary = scipy.ndimage.gaussian_filter1d(np.eye(n), sigma_of(cutoff), axis=0, mode="mirror")
    if n > 2:
        assert np.abs(operator("gaussian", n, n, cutoff=cutoff) - other_boundary).max() > 100 * FLOAT32


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_ideal_is_a_mask_in_numpys_fft(n, cutoff):
    kept = np.abs(np.rint(np.fft.fftfreq(n) * n)) <= np.floor(n * cutoff + 1e-6)
    expected = np.fft.ifft(kept[:, None] * np.fft.fft(np.eye(n), axis=0), axis=0)
    np.testing.assert_allclose(operator("ideal", n, n, cutoff=cutoff), expected.real, atol=FLOAT32)


@pytest.mark.parametrize("n", [7, 14, 28])
def test_ideal_keeps_frequencies_at_its_cutoff_that_a_float32_mask_drops(n):
    cutoff = 3 / n
    assert round(np.trace(operator("ideal", n, n, cutoff=cutoff))) == 7  # the rank of a projection is its trace
    assert round(np.trace(operator("ideal", n, n, cutoff=float(np.float32(cutoff))))) == 7
    float32_mask = np.abs(np.asarray(jnp.fft.fftfreq(n) * n)) <= 3
    assert float32_mask.sum() == 5


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_dct_is_scipys_truncated_dct(n, cutoff):
    kept = np.arange(n) <= np.floor(2 * n * cutoff + 1e-6)
    expected = scipy.fft.idct(kept[:, None] * scipy.fft.dct(np.eye(n), axis=0), axis=0)
    np.testing.assert_allclose(operator("dct", n, n, cutoff=cutoff), expected, atol=FLOAT32)


@pytest.mark.parametrize(("n", "k"), [(8, 4), (14, 7), (7, 3), (56, 7), (9, 1)])
def test_dct_onto_a_grid_is_scipys_inverse_dct_of_the_first_coefficients(n, k):
    coefficients = scipy.fft.dct(np.eye(n), axis=0, norm="ortho")[:k] * np.sqrt(k / n)
    expected = scipy.fft.idct(coefficients, axis=0, norm="ortho")
    np.testing.assert_allclose(operator("dct", n, k), expected, atol=FLOAT32)


@pytest.mark.parametrize(("n", "k"), [(15, 5), (21, 7), (7, 7), (9, 1), (27, 3)])
def test_ideal_onto_an_odd_grid_is_the_filtered_signal_at_the_centers_of_its_cells(n, k):
    # n / k is odd, so each center is a sample.
    full = operator("ideal", n, n, cutoff=k / (2 * n))
    np.testing.assert_allclose(operator("ideal", n, k), full[n // k // 2 :: n // k], atol=FLOAT32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("order", [1, 2, 5])
def test_butterworth_scales_dct_coefficients_by_its_response(n, order):
    gain = (1 + (np.arange(n) / (2 * n) / 0.2) ** (2 * order)) ** -0.5
    expected = scipy.fft.idct(gain[:, None] * scipy.fft.dct(np.eye(n), axis=0), axis=0)
    np.testing.assert_allclose(operator("butterworth", n, n, cutoff=0.2, order=order), expected, atol=FLOAT32)


def test_box_is_torchs_adaptive_average_pooling_with_overlapping_windows():
    goldens = np.load(pathlib.Path(__file__).parent / "goldens" / "box_torch.npz")
    operators = [name for name in goldens.files if name.startswith("operator")]
    assert len(operators) == 12
    for name in operators:
        _, size_in, size_out = name.split("_")
        np.testing.assert_allclose(operator("box", int(size_in), int(size_out)), goldens[name], atol=1e-7, err_msg=name)
    np.testing.assert_allclose(compact(jnp.asarray(goldens["map_x"]), "box", 4), goldens["map_4"], atol=FLOAT32)
    # Plain strided pooling of 7 samples into 4 windows differs.
    strided = np.kron(np.eye(4), [0.5, 0.5])[:, :7]
    assert np.abs(strided - goldens["operator_7_4"]).max() > 0.4


@pytest.mark.parametrize(("n", "width"), [(9, 3), (12, 5), (5, 1), (6, 9)])
def test_box_with_a_cutoff_is_scipys_uniform_filter(n, width):
    expected = scipy.ndimage.uniform_filter1d(np.eye(n), width, axis=0, mode="reflect")
    np.testing.assert_allclose(operator("box", n, n, cutoff=1 / (2 * width)), expected, atol=FLOAT32)


@pytest.mark.parametrize("kind", ["gaussian", "butterworth"])
def test_frequency_response_at_the_cutoff_is_that_of_the_definition(kind):
    at_cutoff = {"gaussian": 0.5, "butterworth": 2**-0.5}[kind]
    response = frequency_response(kind, np.array([0.0, 0.05]), 0.05)
    np.testing.assert_allclose(response, [1, at_cutoff], atol=1e-4)  # truncating the Gaussian at 4 sigma costs 6e-5


@pytest.mark.parametrize("kind", KINDS)
def test_operators_scale_waves_by_the_frequency_response(kind):
    n, m, cutoff = 16, 3, 0.1
    position = np.arange(n) if kind == "ideal" else np.arange(n) + 0.5  # the waves that fit each boundary
    period = n if kind == "ideal" else 2 * n
    wave = np.cos(2 * np.pi * m / period * position)
    expected = frequency_response(kind, np.array(m / period), cutoff) * wave
    np.testing.assert_allclose(operator(kind, n, n, cutoff=cutoff) @ wave, expected, atol=5 * FLOAT32)


def test_control_jaxtyping_checks_shapes_in_the_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="height width channels"):
        compact(jnp.ones((7, 7)), "box", 2)


def maps(draw, height, width, dtype=jnp.float32):
    leading = draw(st.sampled_from([(), (2,), (2, 1)]))
    seed = draw(st.integers(0, 2**31))
    x = np.random.default_rng(seed).standard_normal((*leading, height, width, 3))
    return jnp.asarray(x, dtype)


@st.composite
def cases(draw):
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    kind = draw(st.sampled_from(KINDS))
    cutoff = draw(st.sampled_from([0.02, 0.1, 1 / 7, 0.25, 3 / 7, 0.5]))
    return maps(draw, height, width), kind, cutoff


def bfloat16_rounding(rows, columns, x):
    """Returns 2^-9 each for the weights of both axes and the result, times the sum of the weights' magnitudes."""
    gain = np.abs(rows).sum(axis=1).max() * np.abs(columns).sum(axis=1).max()
    return 3 * 2**-9 * gain * float(jnp.abs(x).max())


# Every new shape compiles, so there are few examples.
few = settings(max_examples=15, deadline=None, derandomize=True)


@few
@given(cases())
def test_matmul_fft_and_convolution_are_the_same_filter(case):
    x, kind, cutoff = case
    result = low_pass(x, kind, cutoff)
    assert result.shape == x.shape
    np.testing.assert_allclose(low_pass(x, kind, cutoff, implementation="fft"), result, atol=1e-5)
    if kind in FINITE_KINDS:
        np.testing.assert_allclose(low_pass(x, kind, cutoff, implementation="conv"), result, atol=1e-5)


@few
@given(st.data())
def test_operator_rows_sum_to_one_so_constants_are_preserved(data):
    kind = data.draw(st.sampled_from(KINDS))
    n = data.draw(st.integers(1, 60))
    k = data.draw(st.integers(1, n))
    cutoff = data.draw(st.sampled_from([None, k / (2 * n), 0.7 * k / (2 * n)]))
    weights = operator(kind, n, k, cutoff=cutoff)
    assert weights.shape == (k, n)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=FLOAT32)
    # Mirrored input gives mirrored output, so there is no half-sample shift.
    np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=FLOAT32)
    if kind in FINITE_KINDS:
        assert weights.min() >= 0


@few
@given(st.data())
def test_compact_grids_equals_separate_separable_products(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    x = maps(data.draw, height, width, data.draw(st.sampled_from([jnp.float32, jnp.bfloat16])))
    kind = data.draw(st.sampled_from(KINDS))
    grids = data.draw(st.lists(st.integers(1, min(height, width)), min_size=1, max_size=3))
    for grid, result in zip(grids, compact_grids(x, kind, grids), strict=True):
        operators = operator(kind, height, grid), operator(kind, width, grid)
        expected = np.einsum("ih,jw,...hwc->...ijc", *operators, np.asarray(x, np.float64))
        assert (result.shape, result.dtype) == (expected.shape, x.dtype)
        rounding = 5e-6 if x.dtype == jnp.float32 else bfloat16_rounding(*operators, x)
        np.testing.assert_allclose(result.astype(jnp.float32), expected, atol=rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_filters_are_exact_up_to_rounding(kind):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 14, 14, 4)), jnp.bfloat16)
    rounding = bfloat16_rounding(*[operator(kind, 14, 14, cutoff=0.1)] * 2, x)
    for implementation in ("matmul", "fft", "conv")[: 3 if kind in FINITE_KINDS else 2]:
        result = low_pass(x, kind, 0.1, implementation=implementation)
        assert result.dtype == jnp.bfloat16
        expected = low_pass(x.astype(jnp.float32), kind, 0.1)
        assert jnp.abs(result.astype(jnp.float32) - expected).max() <= rounding
    assert compact(x, kind, 4).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_compact_is_the_transposed_product(kind):
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, 7, 9, 3)), rng.standard_normal((2, 4, 4, 3))
    rows, columns = operator(kind, 7, 4), operator(kind, 9, 4)
    _, vjp = jax.vjp(lambda x: compact(x, kind, 4), jnp.asarray(x, jnp.float32))
    expected = np.einsum("ih,jw,bijc->bhwc", rows, columns, cotangent)
    np.testing.assert_allclose(vjp(jnp.asarray(cotangent, jnp.float32))[0], expected, atol=5e-6)


@pytest.mark.usefixtures("types_unchecked")
def test_operators_are_cached_and_read_only():
    assert operator("dct", 14, 4) is operator("dct", np.int64(14), 4, cutoff=None, order=2)
    with pytest.raises(ValueError, match="read-only"):
        operator("dct", 14, 4)[0, 0] = 1


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: operator("gausian", 8, 4), "unknown filter kind 'gausian'; did you mean 'gaussian'"),
        (lambda: operator("box", 4, 8), "output size must be at most the input size, 4, got 8"),
        (lambda: operator("box", 4, 0), "sizes must be positive integers, got 0"),
        (lambda: operator("box", 4.0, 2), r"sizes must be positive integers, got 4\.0"),
        (
            lambda: operator("ideal", 8, 4, cutoff=0.3),
            r"at most 0\.25, the Nyquist frequency of 4 of 8 samples, got 0\.3",
        ),
        (lambda: operator("ideal", 8, 8, cutoff=0.6), r"at most 0\.5, the Nyquist frequency, got 0\.6"),
        (lambda: operator("ideal", 8, 8, cutoff=0.0), "must be positive"),
        (lambda: operator("ideal", 8, 8, cutoff=float("nan")), "must be positive"),
        (lambda: operator("gaussian", 8, 8, cutoff=1e-9), "must be at least 0.0001, got 1e-09; for the mean alone"),
        (lambda: operator("butterworth", 8, 4, order=0), "`order` must be a positive integer, got 0"),
        (lambda: compact(jnp.ones((2, 7, 7, 3)), "box", 8), "output size must be at most the input size, 7, got 8"),
        (
            lambda: compact(jnp.ones((2, 7, 7, 3), jnp.uint8), "box", 2),
            r"floating-point array .* got uint8\[2, 7, 7, 3\]",
        ),
        (lambda: low_pass(jnp.ones((7, 7)), "box", 0.1), r"got float32\[7, 7\]"),
        (lambda: low_pass(jnp.ones((7, 7, 3)), "ideal", 0.1, implementation="conv"), "infinite support"),
        (lambda: low_pass(jnp.ones((7, 7, 3)), "ideal", 0.1, implementation="ftt"), "did you mean 'fft'"),
    ],
)
def test_filters_reject_invalid_arguments(call, message):
    with pytest.raises(UserError, match=message):
        call()

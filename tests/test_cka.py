"""CKA against its definition in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax import linear_cka
from lfcc_jax.cka import cka_from_terms, hsic_terms
from lfcc_jax.errors import UserError


def maps(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hsic_by_definition(x, y):
    """Computes the U-statistic of Song et al, equation 4, over all ordered quadruples of distinct examples."""
    k, m = x @ x.T, y @ y.T
    n = len(x)
    i, j, q, r = (a.reshape(-1) for a in np.indices((n,) * 4))
    distinct = (i != j) & (i != q) & (i != r) & (j != q) & (j != r) & (q != r)
    i, j, q, r = (a[distinct] for a in (i, j, q, r))
    return np.mean(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))


def test_hsic_matches_its_definition_over_quadruples_of_examples():
    x, y = jnp.asarray(maps(7, 3) + 2), jnp.asarray(maps(7, 2, 2, 1, seed=1))
    flat = [np.asarray(a, np.float64).reshape(7, -1) for a in (x, y)]
    expected = [hsic_by_definition(flat[a], flat[b]) for a, b in ((0, 1), (0, 0), (1, 1))]
    np.testing.assert_allclose(hsic_terms(x, y), expected, rtol=1e-4, atol=1e-5)


def test_hsic_with_a_mask_equals_hsic_of_the_unmasked_examples():
    x, y = jnp.asarray(maps(9, 3) + 2), jnp.asarray(maps(9, 2, 2, 1, seed=1))
    where = jnp.arange(9) % 4 != 1
    np.testing.assert_allclose(hsic_terms(x, y, where), hsic_terms(x[where], y[where]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(hsic_terms(x, y, jnp.arange(9) < 3), 0)


def test_cka_is_one_up_to_rotation_scale_and_shift():
    x = jnp.asarray(maps(32, 6))
    rotation = np.linalg.qr(maps(6, 6, seed=1))[0]
    np.testing.assert_allclose(linear_cka(x, 7 * x @ rotation + 100), 1, atol=1e-4)


def test_cka_of_unrelated_wide_features_is_zero_unlike_the_biased_estimate():
    pairs = [[jnp.asarray(maps(16, 16, seed=2 * i + j)) for j in (0, 1)] for i in range(64)]
    # Over 64 minibatches. The standard deviation over 20 repetitions is 0.02.
    assert abs(cka_from_terms(sum(hsic_terms(x, y) for x, y in pairs))) < 0.08

    def biased(x, y):
        x, y = (np.asarray(a - a.mean(axis=0, keepdims=True)) for a in (x, y))
        return np.sum((x.T @ y) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2))

    assert np.mean([biased(x, y) for x, y in pairs]) > 0.4


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_cka(jnp.ones((3, 2)), jnp.ones((3, 2))), "at least 4, got 3 and 3"),
        (lambda: linear_cka(jnp.ones((5, 2)), jnp.ones((6, 2))), "got 5 and 6"),
    ],
)
def test_linear_cka_rejects_invalid_arguments(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_hsic_of_bfloat16_maps_matches_float32():
    x, y = (jnp.asarray(maps(16, 4, 4, 8, seed=s) + 3, jnp.bfloat16) for s in (0, 1))
    expected = hsic_terms(x.astype(jnp.float32), y.astype(jnp.float32))
    np.testing.assert_allclose(hsic_terms(x, y), expected, rtol=1e-3, atol=1e-3)


def test_hsic_ignores_nan_in_masked_examples():
    x, y = jnp.asarray(maps(9, 3) + 2), jnp.asarray(maps(9, 2, 2, 1, seed=1))
    where = jnp.arange(9) % 4 != 1
    for dtype in (jnp.float32, jnp.bfloat16):
        a, b = x.astype(dtype), y.astype(dtype)
        with_nan = hsic_terms(a.at[1].set(jnp.nan), b.at[5].set(jnp.inf), where)
        np.testing.assert_array_equal(with_nan, hsic_terms(a, b, where))

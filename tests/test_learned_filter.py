"""The learned filter starts near a fixed filter and remains a weighted mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax.errors import UserError
from lfcc_jax.filters import FINITE_KINDS, compact_grids
from lfcc_jax.learned_filter import learned_compact_grids, learned_filter_init


@pytest.mark.parametrize("kind", FINITE_KINDS)
def test_learned_filter_starts_near_a_fixed_filter_and_remains_a_weighted_mean(kind):
    params = learned_filter_init((14, 9), (1, 4), kind=kind)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 14, 9, 5)), jnp.float32)
    for start, result in zip(compact_grids(x, kind, (1, 4)), learned_compact_grids(params, x, (1, 4)), strict=True):
        assert jnp.abs(result - start).max() < 0.1  # x is in [0, 1], and 5% of the weight is spread along each axis
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda logits: logits + 3 * jnp.asarray(rng.standard_normal(logits.shape), jnp.float32), params
    )
    for result in learned_compact_grids(params, x, (1, 4)):
        assert (result.max() <= x.max()) & (result.min() >= x.min())
    for result in learned_compact_grids(params, jnp.full_like(x, 3), (1, 4)):
        np.testing.assert_allclose(result, 3, atol=5e-6)
    grads = jax.grad(lambda p: sum(jnp.sum(y**2) for y in learned_compact_grids(p, x, (1, 4))))(params)
    assert all(jnp.abs(g).min() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learned_filter_init((7, 7), (2,), kind="dct"), "unknown non-negative filter kind 'dct'"),
        (
            lambda: learned_compact_grids(learned_filter_init((7, 7), (2,)), jnp.ones((7, 8, 3)), (2,)),
            "`x` must be 7 x 7, as passed to learned_filter_init, got 7 x 8",
        ),
        (
            lambda: learned_compact_grids(learned_filter_init((7, 7), (2,)), jnp.ones((7, 7, 3)), (4,)),
            "unknown grid",
        ),
    ],
)
def test_learned_filter_rejects_invalid_arguments(call, message):
    with pytest.raises(UserError, match=message):
        call()

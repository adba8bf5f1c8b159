"""Normalization in the heads of methods, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from lfcc_jax.methods.heads import AttentionExit, BatchNorm, RunningNorm


def test_batch_norm_is_accurate_at_a_large_mean():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 16)) * 0.1 + 100
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5)
    y = BatchNorm().apply(BatchNorm().init(jax.random.key(0), x), x)
    # The spacing of float32 numbers at 100 is 7.6e-6, or 7.6e-5 deviations.
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-4)


def test_attention_exit_is_invariant_to_an_offset_of_all_channels():
    exit_ = AttentionExit(size=2, classes=5, blocks=0)
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 16)) * 0.125
    # Both values are multiples of the spacing of float32 numbers at 128, so that the sum is exact.
    x = jnp.round(x * 2**12) / 2**12
    variables = exit_.init(jax.random.key(1), x)
    logits, shifted = exit_.apply(variables, x), exit_.apply(variables, x + 100)
    np.testing.assert_allclose(shifted, logits, rtol=0, atol=1e-3 * np.abs(logits).max())
    assert np.abs(logits).max() > 0.1


def test_running_norm_standardizes_by_the_mean_and_variance_of_all_steps():
    norm, steps = RunningNorm(), [3 * jax.random.normal(jax.random.key(seed), (4, 5, 5, 3)) + seed for seed in range(4)]
    variables = norm.init(jax.random.key(0), steps[0])
    assert variables["memory"]["step"] == 0
    for step in steps:
        standardized, variables = norm.apply(variables, step, mutable=["memory"])
    last, seen = np.asarray(steps[-1]), np.concatenate(steps).reshape(-1, 3)
    np.testing.assert_allclose(variables["memory"]["mean"], seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variables["memory"]["variance"], seen.var(0), rtol=1e-5)
    np.testing.assert_allclose(standardized, (last - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    # From step 1000 on, it is a moving average.
    late = {"memory": {**variables["memory"], "step": jnp.int32(5000)}}
    _, after = norm.apply(late, steps[0], mutable=["memory"])
    expected = 0.999 * seen.mean(0) + 0.001 * np.asarray(steps[0]).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(after["memory"]["mean"], expected, rtol=1e-5)

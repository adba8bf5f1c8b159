"""Values and gradients of two forms of one operation."""

import jax
import jax.numpy as jnp
import numpy as np


def value_and_gradients(function, *arguments):
    """Returns a function's value, and the gradients of its product with fixed noise."""

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(y * jax.random.normal(jax.random.key(9), y.shape)), y

    gradients, y = jax.jit(jax.grad(loss, tuple(range(len(arguments))), has_aux=True))(*arguments)
    return y, gradients


def assert_equal_to(expected, actual, tolerance=1e-6):
    """Compares trees of arrays; errors are relative to the largest value of an array."""
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * np.abs(x).max())

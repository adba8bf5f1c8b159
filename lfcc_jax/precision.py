"""Arithmetic in float32 or wider, whatever the dtype of the data."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def wide_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns float32, or a floating dtype that is wider; float32 for integers.

    Unlike `jnp.promote_types`, it may be called under strict dtype promotion.

    Examples:
      >>> [str(wide_dtype(dtype)) for dtype in ("bfloat16", "float32", "float64", "int32")]
      ['float32', 'float32', 'float64', 'float32']
    """
    dtype = jnp.dtype(dtype)
    return dtype if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 4 else np.dtype(np.float32)


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x` in float32, or unchanged if it is wider."""
    return x.astype(wide_dtype(x.dtype))

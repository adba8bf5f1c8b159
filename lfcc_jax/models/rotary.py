"""Rotary position embeddings (Su et al., RoFormer, 2021) on a grid of patches, as in DINOv3 (Siméoni et al., 2025)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lfcc_jax.precision import wide_dtype

# Ratio of the longest period to the shortest, almost: periods are BASE ** (0, 1/n, ..., (n - 1)/n).
BASE = 100.0


def rotate(
    x: Float[Array, "batch tokens heads channels"], grid: tuple[int, int], prefix: int
) -> Float[Array, "batch tokens heads channels"]:
    """Returns queries or keys, with pairs of channels rotated by angles that grow with a patch's position.

    Channel i is paired with channel i + channels / 2. A quarter of the channels turns with the row, as `angles` says.

    Args:
      x: Queries or keys. The number of channels must be a multiple of 4.
      grid: Rows and columns of patches.
      prefix: Number of tokens before those of the patches; they are not rotated.
    """
    wide = wide_dtype(x.dtype)
    turned = np.pad(angles(grid, x.shape[-1] // 4), ((prefix, 0), (0, 0)))[None, :, None, :]
    cos, sin = jnp.asarray(np.cos(turned), wide), jnp.asarray(np.sin(turned), wide)
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def angles(grid: tuple[int, int], frequencies: int) -> Float[np.ndarray, "patches angles"]:
    """Returns `frequencies` angles for the row of each patch and as many for its column: 2 pi position / period.

    Positions are those of the patches' centers, from -1 to 1 over the image, whatever its size.
    """
    centers = [(2 * np.arange(n) + 1) / n - 1 for n in grid]
    positions = np.stack(np.meshgrid(*centers, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    periods = BASE ** (np.arange(frequencies) / frequencies)
    return (2 * np.pi * positions / periods).reshape(-1, 2 * frequencies)

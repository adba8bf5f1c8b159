"""Resizes position embeddings and relative-position tables to another image size, as timm does."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def resize_positions(
    positions: Float[np.ndarray, "1 tokens width"], tokens: int, prefix: int
) -> Float[np.ndarray, "1 {tokens} width"]:
    """Returns the position embedding of a square grid, resized to another grid: bicubic, antialiased.

    Args:
      positions: Embeddings of `prefix` tokens and a square grid of patches.
      tokens: Number of tokens of the result, including `prefix`.
      prefix: Number of leading tokens that are not patches; copied unchanged.
    """
    before, grid = positions[:, :prefix], positions[:, prefix:]
    old, new = (round((n - prefix) ** 0.5) for n in (positions.shape[1], tokens))
    grid = jax.image.resize(
        jnp.asarray(grid.reshape(old, old, -1)), (new, new, grid.shape[-1]), "cubic", precision="highest"
    )
    return np.concatenate([before, np.asarray(grid).reshape(1, new * new, -1)], axis=1)


def resize_position_bias(
    bias: Float[np.ndarray, "offsets heads"], offsets: int
) -> Float[np.ndarray, "{offsets} heads"]:
    """Returns the bias table of a square window, resized to another window.

    As in BEiT and timm, known offsets are spread in a geometric progression, so that close neighbors keep their values
    and only distant ones are interpolated. Offsets beyond the table take the value at its edge.

    Args:
      bias: One row for each relative position in a square window.
      offsets: Number of rows of the result.
    """
    old, new = (round(n**0.5) for n in (bias.shape[0], offsets))
    known = _geometric_offsets(old // 2, new // 2)
    target = np.arange(-(new // 2), new // 2 + 1)
    index = np.clip(np.searchsorted(known, target, side="right") - 1, 0, old - 2)
    fraction = np.clip((target - known[index]) / (known[index + 1] - known[index]), 0, 1)
    weights = np.zeros((new, old))
    weights[np.arange(new), index] = 1 - fraction
    weights[np.arange(new), index + 1] = fraction
    table = np.einsum("ai,bj,ijh->abh", weights, weights, bias.reshape(old, old, -1).astype(np.float64))
    return table.reshape(offsets, -1).astype(bias.dtype)


def _geometric_offsets(old: int, new: int) -> np.ndarray:
    """Returns 2 * old + 1 offsets that reach `new` on each side: 0, 1, 1 + q, 1 + q + q^2, ..., and their negatives."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**old) / (1 - q) > new else (q, high)
    positive = np.cumsum(q ** np.arange(old))
    return np.concatenate([-positive[::-1], [0.0], positive])

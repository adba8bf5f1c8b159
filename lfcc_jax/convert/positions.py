"""What depends on the image's size: position embeddings and relative-position tables, resized as timm does."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def resize_positions(
    positions: Float[np.ndarray, "1 tokens width"], tokens: int, prefix: int
) -> Float[np.ndarray, "1 {tokens} width"]:
    """Returns the position embedding of a square grid resized to another: bicubic, antialiased.

    Args:
      positions: of `prefix` tokens and a square grid of patches.
      tokens: how many the result shall be for.
      prefix: how many of both are not patches, and stay what they are.
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
    """Returns the bias table of a square window resized to that of another.

    Offsets are stretched in a geometric progression, so that neighbors keep their own and only what is far is
    interpolated, as in BEiT and timm; what is farther than a table reaches takes its edge.

    Args:
      bias: a row for each relative position in a square window.
      offsets: how many rows the result shall have.
    """
    old, new = (round(n**0.5) for n in (bias.shape[0], offsets))
    known = _stretched(old // 2, new // 2)
    wanted = np.arange(-(new // 2), new // 2 + 1)
    index = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, old - 2)
    share = np.clip((wanted - known[index]) / (known[index + 1] - known[index]), 0, 1)
    weights = np.zeros((new, old))
    weights[np.arange(new), index] = 1 - share
    weights[np.arange(new), index + 1] = share
    table = np.einsum("ai,bj,ijh->abh", weights, weights, bias.reshape(old, old, -1).astype(np.float64))
    return table.reshape(offsets, -1).astype(bias.dtype)


def _stretched(old: int, new: int) -> np.ndarray:
    """Returns where the 2 * old + 1 known offsets lie so that they reach as far as `new`: 1, 1 + q, 1 + q + q^2 ..."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**old) / (1 - q) > new else (q, high)
    positive = np.cumsum(q ** np.arange(old))
    return np.concatenate([-positive[::-1], [0.0], positive])

"""A low-pass filter whose weights are learned, and stay those of a weighted mean."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError, unknown
from lfcc_jax.filters import FINITE_KINDS, apply_operator_pairs, check_map, operator

# Share of the initial weight that is spread evenly, so that every sample has a gradient from the start.
_SPREAD = 0.05


def learned_filter_init(
    size: tuple[int, int], grids: Sequence[int], *, kind: str = "box"
) -> dict[str, dict[str, Float[Array, "_ _"]]]:
    """Returns the parameters of a learned low-pass filter that starts near a fixed one.

    Args:
      size: height and width of the maps to be filtered.
      grids: the sizes of the grids.
      kind: the filter to start from, "box" or "gaussian" (the others have negative weights).

    Returns:
      A pytree of float32 logits: `{"4": {"rows": [4, height], "columns": [4, width]}, ...}`, a key for each grid.

    Raises:
      UserError: if the filter has negative weights, or a grid does not fit into the map.

    Examples:
      >>> params = learned_filter_init((14, 14), (2,))
      >>> jax.tree.map(jnp.shape, params)
      {'2': {'columns': (2, 14), 'rows': (2, 14)}}
    """
    if kind not in FINITE_KINDS:
        raise unknown("filter with weights that are never negative", kind, FINITE_KINDS)

    def logits(size_in: int, grid: int) -> Array:
        weights = (1 - _SPREAD) * operator(kind, size_in, grid) + _SPREAD / size_in
        return jnp.asarray(np.log(weights), jnp.float32)

    height, width = size
    return {str(grid): {"rows": logits(height, grid), "columns": logits(width, grid)} for grid in grids}


def learned_compact_grids(
    params: dict[str, dict[str, Float[Array, "_ _"]]],
    x: Float[Array, "*batch height width channels"],
    grids: Sequence[int],
    dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch _ _ channels"], ...]:
    r"""Shrinks a feature map to several grids with a learned filter.

    As `compact_grids`, with the operators :math:`A = \mathrm{softmax}(rows)` and :math:`B = \mathrm{softmax}(columns)`.
    Whatever is learned, an output stays a weighted mean of the map, so constants are preserved.

    Args:
      params: from `learned_filter_init`.
      x: feature maps of the size given there, channels last.
      grids: the sizes of the grids, all of them in `params`.
      dtype: Of the result; that of `x` by default.

    Returns:
      One compact map for each grid, accumulated in float32 or wider.

    Raises:
      UserError: if `params` has no filter for a grid, or one for maps of another size.

    Examples:
      >>> params = learned_filter_init((14, 14), (2, 4))
      >>> [y.shape for y in learned_compact_grids(params, jnp.ones((5, 14, 14, 8)), (2, 4))]
      [(5, 2, 2, 8), (5, 4, 4, 8)]
    """
    check_map(x)
    pairs = []
    for grid in grids:
        if str(grid) not in params:
            raise unknown("grid of this learned filter", grid, params)
        rows, columns = params[str(grid)]["rows"], params[str(grid)]["columns"]
        if (rows.shape[1], columns.shape[1]) != x.shape[-3:-1]:
            raise UserError(
                f"This learned filter is for maps of {rows.shape[1]} x {columns.shape[1]}, "
                f"and was given one of {x.shape[-3]} x {x.shape[-2]}."
            )
        pairs.append((jax.nn.softmax(rows, axis=-1), jax.nn.softmax(columns, axis=-1)))
    return apply_operator_pairs(pairs, x, dtype)

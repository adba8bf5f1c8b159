"""A low-pass filter with learned weights, which are positive and sum to one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError, unknown
from lfcc_jax.filters import FINITE_KINDS, apply_operator_pairs, check_map, operator

# Fraction of the initial weight that is spread evenly, so that every sample gets a gradient from the start.
_SPREAD = 0.05


def learned_filter_init(
    size: tuple[int, int], grids: Sequence[int], *, kind: str = "box"
) -> dict[str, dict[str, Float[Array, "_ _"]]]:
    """Returns the parameters of a learned low-pass filter that starts near a fixed one.

    Args:
      size: Height and width of the feature maps.
      grids: Heights (and widths) of the grids.
      kind: Filter to start from, "box" or "gaussian" (the others have negative weights).

    Returns:
      A pytree of float32 logits: `{"4": {"rows": [4, height], "columns": [4, width]}, ...}`, a key for each grid.

    Raises:
      UserError: if `kind` has negative weights or is unknown, or a grid is larger than the map.

    Examples:
      >>> params = learned_filter_init((14, 14), (2,))
      >>> jax.tree.map(jnp.shape, params)
      {'2': {'columns': (2, 14), 'rows': (2, 14)}}
    """
    if kind not in FINITE_KINDS:
        raise unknown("non-negative filter kind", kind, FINITE_KINDS)

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

    Like `compact_grids`, with the operators :math:`A = \mathrm{softmax}(rows)` and
    :math:`B = \mathrm{softmax}(columns)`. Outputs are weighted means of the map, so constants are preserved.

    Args:
      params: Result of `learned_filter_init`.
      x: Feature maps of the size passed to `learned_filter_init`, channels last.
      grids: Heights (and widths) of the grids, all of them in `params`.
      dtype: Dtype of the result; that of `x` by default.

    Returns:
      One compact map for each grid, accumulated in float32 or wider.

    Raises:
      UserError: if `params` has no filter for a grid, or was created for maps of another size.

    Examples:
      >>> params = learned_filter_init((14, 14), (2, 4))
      >>> [y.shape for y in learned_compact_grids(params, jnp.ones((5, 14, 14, 8)), (2, 4))]
      [(5, 2, 2, 8), (5, 4, 4, 8)]
    """
    check_map(x)
    pairs = []
    for grid in grids:
        if str(grid) not in params:
            raise unknown("grid of the learned filter", grid, params)
        rows, columns = params[str(grid)]["rows"], params[str(grid)]["columns"]
        if (rows.shape[1], columns.shape[1]) != x.shape[-3:-1]:
            raise UserError(
                f"`x` must be {rows.shape[1]} x {columns.shape[1]}, as passed to learned_filter_init, "
                f"got {x.shape[-3]} x {x.shape[-2]}"
            )
        pairs.append((jax.nn.softmax(rows, axis=-1), jax.nn.softmax(columns, axis=-1)))
    return apply_operator_pairs(pairs, x, dtype)

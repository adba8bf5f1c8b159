"""Low-pass filters as small constant matrices, applied to feature maps to smooth or shrink them.

A linear filter along an axis of n samples is an n x n matrix; a filter followed by sampling at k < n points is k rows.
Smoothing a map `x` is `A x A'`, and shrinking it to a k x k grid is the same product with shorter matrices. These small
products run on the matrix unit, support bfloat16, are differentiable, and act on the spatial axes only: a batch sharded
over any number of devices is filtered without communication, while `jnp.fft` gathers it on jax 0.10 (jax-ml/jax#15680).

All frequencies are in cycles per sample: 0.5 is the Nyquist frequency of the map.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError, unknown
from lfcc_jax.precision import wide_dtype, widen

KINDS = ("box", "gaussian", "ideal", "dct", "butterworth")
FINITE_KINDS = ("box", "gaussian")  # finite support, non-negative taps: for convolutions and learned filters
IMPLEMENTATIONS = ("matmul", "fft", "conv")

# Gaussians are truncated at 4 standard deviations, as in scipy.ndimage.
_TRUNCATE = 4.0
# One Kronecker product is faster than one product per axis up to about this many output points per grid, on large and
# on small maps (experiments/bench/filters.py).
_KRONECKER_POINTS, _KRONECKER_POINTS_SMALL, _SMALL_MAP = 32, 100, 14 * 14


# --- Filters in one dimension -----------------------------------------------------------------------------------------


def operator(
    kind: str, size_in: int, size_out: int, *, cutoff: float | None = None, order: int = 2
) -> Float[np.ndarray, "size_out size_in"]:
    r"""Returns the matrix that low-pass filters `size_in` samples and samples the result at `size_out` points.

    Row i contains the weights of output i, at the center of the i-th of `size_out` equal cells,
    :math:`c_i = (i + 1/2)\, n / k - 1/2` for n = `size_in`, k = `size_out`. With amplitude response H:

    ============= ==================================================================== =========================
    kind          amplitude response at frequency f                                    boundary
    ============= ==================================================================== =========================
    box           without a cutoff: the windows of torch's `adaptive_avg_pool`, which
                  overlap where k does not divide n. With one: a mean over
                  1 / (2 cutoff) samples, the outermost weighted by their overlap.     half-sample symmetric
    gaussian      :math:`2^{-(f / cutoff)^2}`, cut at 4 standard deviations            half-sample symmetric
    ideal         1 up to the cutoff, 0 beyond: a projection in the DFT                periodic
    dct           1 up to the cutoff, 0 beyond: a truncated DCT-II                     half-sample symmetric
    butterworth   :math:`1 / \sqrt{1 + (f / cutoff)^{2 \cdot order}}`                  half-sample symmetric
    ============= ==================================================================== =========================

    Every row sums to one, so constants are preserved.

    Args:
      kind: "box", "gaussian", "ideal", "dct" or "butterworth".
      size_in: Number of samples along the axis.
      size_out: Number of output samples, at most `size_in`.
      cutoff: Cutoff in cycles per sample, positive and at most the Nyquist frequency of the output,
        `size_out / (2 * size_in)`, which is the default. (Higher frequencies would alias.)
      order: Order of the Butterworth filter; ignored by the other kinds.

    Returns:
      A float32 matrix, cached and read-only.

    Raises:
      UserError: if the kind is unknown, or a size, the cutoff or the order is out of bounds.

    Examples:
      >>> operator("box", 4, 2)
      array([[0.5, 0.5, 0. , 0. ],
             [0. , 0. , 0.5, 0.5]], dtype=float32)
      >>> operator("gaussian", 7, 4).sum(axis=1)
      array([1., 1., 1., 1.], dtype=float32)

    References:
      Butterworth, `On the Theory of Filter Amplifiers
      <https://www.changpuak.ch/electronics/downloads/On_the_Theory_of_Filter_Amplifiers.pdf>`_, 1930
    """
    _check_kind(kind)
    _check_sizes(size_in, size_out)
    if cutoff is not None:
        _check_cutoff(cutoff, size_in, size_out)
    _check_order(order)
    return _operator(kind, int(size_in), int(size_out), None if cutoff is None else float(cutoff), int(order))


@functools.lru_cache(maxsize=512)
def _operator(kind: str, n: int, k: int, cutoff: float | None, order: int) -> np.ndarray:
    nyquist = k / (2 * n)
    centers = (np.arange(k) + 0.5) * n / k - 0.5
    if kind == "box" and cutoff is None:
        weights = _adaptive_windows(n, k)
    elif kind in FINITE_KINDS:
        weights = np.stack([_folded_taps(kind, nyquist if cutoff is None else cutoff, n, c) for c in centers])
    elif kind == "ideal":
        m = np.arange(n // 2 + 1)
        gain = frequency_response(kind, m / n, nyquist if cutoff is None else cutoff)
        twice = np.where((m == 0) | (2 * m == n), 1, 2)  # all other frequencies are conjugate pairs
        phase = 2 * np.pi / n * (centers[:, None] - np.arange(n))
        weights = np.cos(phase[..., None] * m) @ (gain * twice) / n
    else:
        m = np.arange(n)
        gain = frequency_response(kind, m / (2 * n), nyquist if cutoff is None else cutoff, order=order)
        twice = np.where(m == 0, 1, 2)
        analysis = np.cos(np.pi / n * np.outer(m, np.arange(n) + 0.5))
        synthesis = np.cos(np.pi / n * np.outer(centers + 0.5, m))
        weights = (synthesis * (gain * twice)) @ analysis / n
    weights = weights.astype(np.float32)
    weights.flags.writeable = False
    return weights


def _adaptive_windows(n: int, k: int) -> np.ndarray:
    start = np.arange(k) * n // k
    stop = -(-np.arange(1, k + 1) * n // k)  # the ceiling of (i + 1) n / k, in integers
    inside = (np.arange(n) >= start[:, None]) & (np.arange(n) < stop[:, None])
    return inside / inside.sum(axis=1, keepdims=True)


def _taps(kind: str, cutoff: float, center: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integer positions under a box or Gaussian at `center`, and their weights, which sum to one."""
    if kind == "box":
        width = 1 / (2 * cutoff)
        reach = (width + 1) / 2  # samples farther away do not overlap the window
    else:
        sigma = np.sqrt(np.log(2) / 2) / (np.pi * cutoff)  # exp(-2 (pi sigma f)^2) = 1/2 at the cutoff
        reach = int(_TRUNCATE * sigma + 0.5)
    positions = np.arange(np.ceil(center - reach), np.floor(center + reach) + 1).astype(int)
    distance = np.abs(positions - center)
    weights = np.clip(reach - distance, 0, 1) if kind == "box" else np.exp(-0.5 * (distance / sigma) ** 2)
    return positions, weights / weights.sum()


def _folded_taps(kind: str, cutoff: float, n: int, center: float) -> np.ndarray:
    """Returns one row of n weights, with the taps beyond either end reflected (d c b a | a b c d | d c b a)."""
    positions, weights = _taps(kind, cutoff, center)
    positions = positions % (2 * n)
    return np.bincount(np.minimum(positions, 2 * n - 1 - positions), weights, minlength=n)


def frequency_response(
    kind: str, frequencies: Float[np.ndarray, "..."], cutoff: float, *, order: int = 2
) -> Float[np.ndarray, "..."]:
    """Returns the factor by which a filter scales a wave of each frequency.

    Args:
      kind: One of `KINDS`.
      frequencies: Frequencies in cycles per sample.
      cutoff: Cutoff in cycles per sample, positive and at most 0.5.
      order: Order of the Butterworth filter.

    Returns:
      The amplitude response in float64, in the shape of `frequencies`.

    Raises:
      UserError: if the kind is unknown, or the cutoff or the order is out of bounds.

    Examples:
      >>> frequency_response("gaussian", np.array([0.0, 0.1, 0.2]), cutoff=0.1).round(3)
      array([1.   , 0.5  , 0.063])
    """
    _check_kind(kind)
    _check_cutoff(cutoff, 1, 1)
    _check_order(order)
    f = np.abs(np.asarray(frequencies, np.float64))
    if kind in FINITE_KINDS:
        positions, weights = _taps(kind, cutoff)
        return np.asarray(np.cos(2 * np.pi * f[..., None] * positions) @ weights)
    if kind == "butterworth":
        return np.asarray(1 / np.sqrt(1 + (f / cutoff) ** (2 * order)))
    # The tolerance keeps frequencies that equal the cutoff up to rounding. (In float32,
    # `abs(fftfreq(7) * 7) <= 3` drops two of seven frequencies.)
    return np.where(f <= cutoff * (1 + 1e-6), 1.0, 0.0)


# --- Filters on feature maps ------------------------------------------------------------------------------------------


def low_pass(
    x: Float[Array, "*batch height width channels"],
    kind: str,
    cutoff: float,
    *,
    order: int = 2,
    implementation: Literal["matmul", "fft", "conv"] = "matmul",
) -> Float[Array, "*batch height width channels"]:
    """Smooths a feature map without changing its size.

    With A and B the square operators of the two spatial axes: :math:`y = A x B'` in each channel.

    Args:
      x: Feature maps, channels last, of any floating dtype.
      kind: One of `KINDS`; see `operator`.
      cutoff: Cutoff in cycles per sample, positive and at most 0.5.
      order: Order of the Butterworth filter.
      implementation: Use "matmul". The others are reference implementations: "fft" in the frequency domain, "conv" by
        separable convolution (only "box" and "gaussian", which have finite support).

    Returns:
      The smoothed maps, in the shape and dtype of `x`, accumulated in float32 or wider.

    Raises:
      UserError: if an argument is unknown or out of bounds, or `implementation` does not support `kind`.

    Examples:
      >>> wave = jnp.array([1.0, -1.0] * 4).reshape(1, 8, 1, 1)  # the Nyquist frequency
      >>> print(low_pass(3.0 + wave, "ideal", 0.25)[0, :, 0, 0].round(5))
      [3. 3. 3. 3. 3. 3. 3. 3.]
    """
    check_map(x)
    _check_kind(kind)
    _check_cutoff(cutoff, 1, 1)
    _check_order(order)
    if implementation not in IMPLEMENTATIONS:
        raise unknown("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "conv" and kind not in FINITE_KINDS:
        raise UserError(
            f"`kind` must be {' or '.join(map(repr, FINITE_KINDS))} with implementation='conv', got {kind!r}, "
            "which has infinite support; use implementation='matmul'"
        )
    if implementation == "fft":
        return _low_pass_fft(x, kind, cutoff, order)
    if implementation == "conv":
        return _low_pass_conv(x, kind, cutoff)
    height, width = x.shape[-3:-1]
    rows = operator(kind, height, height, cutoff=cutoff, order=order)
    columns = operator(kind, width, width, cutoff=cutoff, order=order)
    return apply_operator_pairs([(rows, columns)], x)[0]


def apply_operators(
    rows: Float[Array | np.ndarray, "out_height height"],
    columns: Float[Array | np.ndarray, "out_width width"],
    x: Float[Array, "*batch height width channels"],
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch out_height out_width channels"]:
    """Applies one operator along the height and one along the width of a map: `A x B'` in each channel.

    Args:
      rows: A, the operator along the height.
      columns: B, the operator along the width.
      x: Feature maps, channels last.
      dtype: Dtype of the result; that of `x` by default.

    Returns:
      The filtered maps.

    Examples:
      >>> x = jnp.ones((2, 6, 4, 3))
      >>> apply_operators(operator("box", 6, 3), operator("dct", 4, 2), x).shape
      (2, 3, 2, 3)
    """
    *batch, height, width, channels = x.shape
    y = _matmul(jnp.asarray(rows, x.dtype), x.reshape(*batch, height, width * channels))
    y = y.reshape(*batch, rows.shape[0], width, channels)
    return _matmul(jnp.asarray(columns, y.dtype), y).astype(dtype or x.dtype)


def compact(
    x: Float[Array, "*batch height width channels"], kind: str, grid: int
) -> Float[Array, "*batch {grid} {grid} channels"]:
    """Shrinks a feature map to its low-frequency components on a `grid` x `grid` grid.

    With A and B the operators onto `grid` points, each with the Nyquist frequency of the grid as its cutoff:
    :math:`y = A x B'` in each channel.

    Args:
      x: Feature maps, channels last, of any floating dtype.
      kind: One of `KINDS`; see `operator`.
      grid: Height and width of the result, at most those of `x`.

    Returns:
      The compact maps in the dtype of `x`, accumulated in float32 or wider.

    Raises:
      UserError: if the kind is unknown or the grid is larger than the map.

    Examples:
      >>> compact(jnp.ones((2, 56, 56, 64)), "box", 7).shape
      (2, 7, 7, 64)
    """
    return compact_grids(x, kind, (grid,))[0]


def compact_grids(
    x: Float[Array, "*batch height width channels"],
    kind: str,
    grids: Sequence[int],
    dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch _ _ channels"], ...]:
    """Shrinks a feature map to several grids, reading the map once.

    Equivalent to `tuple(compact(x, kind, grid) for grid in grids)`, but faster: unless the grids are large, the
    Kronecker products of A and B for all grids are stacked into one matrix, which multiplies the map once. On CPUs and
    NVIDIA GPUs, boxes that divide the map are means of blocks, each grid's from a finer one.

    Args:
      x: Feature maps, channels last, of any floating dtype.
      kind: One of `KINDS`; see `operator`.
      grids: Heights (and widths) of the grids.
      dtype: Dtype of the result; that of `x` by default.

    Returns:
      One compact map for each grid, accumulated in float32 or wider.

    Raises:
      UserError: if the kind is unknown, or a grid is larger than the map.

    Examples:
      >>> [y.shape for y in compact_grids(jnp.ones((2, 14, 14, 8)), "dct", (1, 2, 4))]
      [(2, 1, 1, 8), (2, 2, 2, 8), (2, 4, 4, 8)]
    """
    check_map(x)
    _check_kind(kind)
    height, width = x.shape[-3:-1]
    for grid in grids:
        _check_sizes(height, grid)
        _check_sizes(width, grid)
    pairs = [(operator(kind, height, grid), operator(kind, width, grid)) for grid in grids]
    products = functools.partial(apply_operator_pairs, pairs, dtype=dtype)
    if kind == "box" and all(height % grid == width % grid == 0 for grid in grids):
        means = functools.partial(_box_pyramid, grids=grids, dtype=dtype)
        return jax.lax.platform_dependent(x, cpu=means, cuda=means, default=products)
    return products(x)


def _box_pyramid(x: Array, grids: Sequence[int], dtype: DTypeLike | None) -> tuple[Array, ...]:
    wide = wide_dtype(x.dtype)
    done: dict[int, Array] = {}
    for grid in sorted(set(grids), reverse=True):
        finer = [other for other in done if other % grid == 0]
        source = done[min(finer)] if finer else x
        *batch, height, width, channels = source.shape
        # One axis at a time: explicit sharding does not support splitting two in one reshape.
        rows = source.reshape(*batch, grid, height // grid, width, channels).mean(axis=-3, dtype=wide)
        done[grid] = rows.reshape(*batch, grid, grid, width // grid, channels).mean(axis=-2)
    return tuple(done[grid].astype(dtype or x.dtype) for grid in grids)


def apply_operator_pairs(
    pairs: Sequence[tuple[Float[Array | np.ndarray, "_ height"], Float[Array | np.ndarray, "_ width"]]],
    x: Float[Array, "*batch height width channels"],
    dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch _ _ channels"], ...]:
    """Applies several pairs of operators to one map, in one pass where that is faster: `A x B'` for each.

    Args:
      pairs: Pairs (A, B) of operators along the height and along the width.
      x: Feature maps, channels last.
      dtype: Dtype of the result; that of `x` by default.

    Returns:
      The filtered maps, one for each pair, accumulated in float32 or wider.

    Examples:
      >>> pairs = [(operator("box", 6, k), operator("box", 4, k)) for k in (1, 2)]
      >>> [y.shape for y in apply_operator_pairs(pairs, jnp.ones((5, 6, 4, 3)))]
      [(5, 1, 1, 3), (5, 2, 2, 3)]
    """
    sizes = [(rows.shape[0], columns.shape[0]) for rows, columns in pairs]
    points = [out_height * out_width for out_height, out_width in sizes]
    *batch, height, width, channels = x.shape
    worthwhile = _KRONECKER_POINTS_SMALL if height * width <= _SMALL_MAP else _KRONECKER_POINTS
    if sum(points) > worthwhile * len(points):
        return tuple(apply_operators(rows, columns, x, dtype) for rows, columns in pairs)
    constant = all(isinstance(a, np.ndarray) for pair in pairs for a in pair)
    xp = np if constant else jnp
    kronecker = xp.concatenate([xp.kron(rows, columns) for rows, columns in pairs])
    y = _matmul(jnp.asarray(kronecker, x.dtype), x.reshape(*batch, height * width, channels))
    y = y.astype(dtype or x.dtype)
    parts = jnp.split(y, np.cumsum(points)[:-1], axis=-2)
    return tuple(part.reshape(*batch, *size, channels) for part, size in zip(parts, sizes, strict=True))


def _matmul(a: Float[Array, "out n"], x: Float[Array, "*batch n m"]) -> Float[Array, "*batch out m"]:
    """Multiplies every matrix of a batch from the left, accumulating in float32 or wider."""
    # Filters are memory-bound, so exact float32 products ("highest") cost almost nothing.
    wide = wide_dtype(x.dtype)
    return jnp.matmul(a, x, precision="highest", preferred_element_type=wide)


def _low_pass_fft(x: Array, kind: str, cutoff: float, order: int) -> Array:
    y = widen(x)  # there is no FFT of bfloat16
    for axis in (-3, -2):
        n = x.shape[axis]
        if kind == "ideal":
            period = n
        else:  # half-sample symmetry: append the mirror image, then treat as periodic
            period = 2 * n
            y = jnp.concatenate([y, jnp.flip(y, axis)], axis)
        gain = frequency_response(kind, np.arange(period // 2 + 1) / period, cutoff, order=order)
        gain = gain.reshape((-1,) + (1,) * (-axis - 1)).astype(y.dtype)
        y = jnp.fft.irfft(_scale(gain, jnp.fft.rfft(y, axis=axis)), period, axis=axis)
        y = jax.lax.slice_in_dim(y, 0, n, axis=axis % x.ndim)
    return y.astype(x.dtype)


def _scale(gain: np.ndarray, spectrum: Array) -> Array:
    return jnp.expand_dims(gain, tuple(range(spectrum.ndim - gain.ndim))).astype(spectrum.dtype) * spectrum


def _low_pass_conv(x: Array, kind: str, cutoff: float) -> Array:
    positions, weights = _taps(kind, cutoff)
    reach, channels = positions[-1], x.shape[-1]
    y = widen(x.reshape(-1, *x.shape[-3:]))
    for axis, shape in ((1, (-1, 1, 1, 1)), (2, (1, -1, 1, 1))):
        y = jnp.pad(y, [(reach, reach) if i == axis else (0, 0) for i in range(4)], mode="symmetric")
        kernel = jnp.broadcast_to(
            weights.reshape(shape).astype(y.dtype), (*np.reshape(weights, shape).shape[:3], channels)
        )
        y = jax.lax.conv_general_dilated(
            y,
            kernel,
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
            precision="highest",
        )
    return y.reshape(x.shape).astype(x.dtype)


# --- Validation -------------------------------------------------------------------------------------------------------


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise unknown("filter kind", kind, KINDS)


def check_map(x: Array) -> None:
    """Raises unless `x` is a feature map.

    Args:
      x: Array to check.

    Raises:
      UserError: if `x` is not `[..., height, width, channels]` of a floating dtype.

    Examples:
      >>> check_map(jnp.ones((7, 7)))
      Traceback (most recent call last):
      lfcc_jax.errors.UserError: `x` must be a floating-point array [..., height, width, channels], got float32[7, 7]
    """
    if x.ndim < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(
            f"`x` must be a floating-point array [..., height, width, channels], got {x.dtype}{list(x.shape)}"
        )


def _check_sizes(size_in: int, size_out: int) -> None:
    for size in (size_in, size_out):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise UserError(f"sizes must be positive integers, got {size!r}")
    if size_out > size_in:
        raise UserError(f"the output size must be at most the input size, {size_in}, got {size_out}")


def _check_cutoff(cutoff: float, size_in: int, size_out: int) -> None:
    highest = size_out / (2 * size_in)
    if not 0 < cutoff <= highest * (1 + 1e-6):
        output = "" if size_out == size_in else f" of {size_out} of {size_in} samples"
        raise UserError(
            f"`cutoff` must be positive and at most {highest:.6g}, the Nyquist frequency{output}, got {cutoff!r}"
        )
    if cutoff < 1e-4:
        raise UserError(
            f"`cutoff` must be at least 0.0001, got {cutoff!r}; for the mean alone, use compact(x, kind, 1)"
        )


def _check_order(order: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int | np.integer) or order < 1:
        raise UserError(f"`order` must be a positive integer, got {order!r}")

"""Affine warps of images: rotation, shear, translation."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Image = Float[Array, "height width channels"]
Affine = Float[Array, "2 3"]


def warp(image: Image, affine: Affine, fill: Float[Array, " channels"]) -> Image:
    """Returns the warped image with bilinear interpolation, as in Pillow's `Image.transform`.

    A TPU gathers serially, so there a rotation is three shears, each with linear interpolation along one axis, and
    pixels differ slightly. timm uses bicubic interpolation half of the time; this is always bilinear.

    Args:
      image: Integer levels, 0 to 255.
      affine: Maps output to input coordinates, in pixels from the corner. Its determinant is 1.
      fill: Value of pixels outside of the image, by channel.
    """
    read = jax.lax.platform_dependent(image, affine, tpu=_read_by_shears, default=_read)
    inside = _inside(affine, *image.shape[:2])
    return jnp.where(inside[..., None], jnp.floor(read + 1e-3), fill[None, None, :])


def _coordinates(affine: Affine, height: int, width: int) -> tuple[Array, Array]:
    x, y = jnp.arange(float(width))[None, :] + 0.5, jnp.arange(float(height))[:, None] + 0.5
    return tuple(row[0] * x + row[1] * y + row[2] for row in affine)


def _inside(affine: Affine, height: int, width: int) -> Bool[Array, "height width"]:
    at_x, at_y = _coordinates(affine, height, width)
    return (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)


def _read(image: Image, affine: Affine) -> Image:
    height, width, _ = image.shape
    at_x, at_y = _coordinates(affine, height, width)
    left, top = jnp.floor(at_x - 0.5), jnp.floor(at_y - 0.5)
    right_weight, lower_weight = (at_x - 0.5 - left)[..., None], (at_y - 0.5 - top)[..., None]
    columns = [jnp.clip(left + i, 0, width - 1).astype(jnp.int32) for i in (0, 1)]
    rows = [jnp.clip(top + i, 0, height - 1).astype(jnp.int32) for i in (0, 1)]
    upper, lower = (image[row, columns[0]] * (1 - right_weight) + image[row, columns[1]] * right_weight for row in rows)
    return upper * (1 - lower_weight) + lower * lower_weight


# The largest shift of a row in a rotation by 30 degrees, as a fraction of the image's height.
_OVERHANG = math.tan(math.radians(15)) / 2


def _read_by_shears(image: Image, affine: Affine) -> Image:
    """Shifts rows, then columns, then rows again: the affine map is the product of three shears.

    With the origin at the image's center, X(a) the map (x, y) -> (x + a y, y) and Y(a) the map (x, y) -> (x, y + a x):
    M = X(p) Y(d) X(q). The integer part of a shift is a sequence of rolls by powers of two; the rest is linear
    interpolation.
    """
    height, width, _ = image.shape
    (a, b, _), (d, e, _) = affine
    rotates = d != 0
    safe = jnp.where(rotates, d, 1.0)
    p, q = jnp.where(rotates, (a - 1) / safe, 0.0), jnp.where(rotates, (e - 1) / safe, b)
    center = jnp.array([width / 2, height / 2])
    move_x, move_y = affine[:, 2] + affine[:, :2] @ center - center
    move_x = move_x - p * move_y
    move_y = move_y - d * move_x

    margin, edge = math.ceil(_OVERHANG * height) + 2, 2
    canvas = jnp.pad(image, ((edge, edge), (margin, margin), (0, 0)), mode="edge")
    y = jnp.arange(height + 2.0 * edge) - edge + 0.5 - height / 2
    x = jnp.arange(width + 2.0 * margin) - margin + 0.5 - width / 2
    canvas = _shift(canvas, p * y, axis=1)
    canvas = _shift(canvas, d * x + move_y, axis=0)
    canvas = _shift(canvas, q * y + move_x, axis=1)
    return canvas[edge : edge + height, margin : margin + width]


def _shift(image: Image, by: Float[Array, " lines"], axis: int) -> Image:
    """Returns the image with each row (axis 1) or column (axis 0) shifted back `by` pixels, with wrap-around.

    Wrapped pixels are outside of the image and are discarded by the caller.
    """
    size = image.shape[axis]
    whole = jnp.floor(by)
    rest = by - whole
    whole = jnp.mod(whole, size).astype(jnp.int32)
    lines = (slice(None), None, None) if axis == 1 else (None, slice(None), None)
    for power in range((size - 1).bit_length()):
        taken = ((whole >> power) & 1)[lines] == 1
        image = jnp.where(taken, jnp.roll(image, -(2**power), axis), image)
    return image + rest[lines] * (jnp.roll(image, -1, axis) - image)

"""Images read at other places: rotated, sheared, moved."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Image = Float[Array, "height width channels"]
Affine = Float[Array, "2 3"]


def warp(image: Image, affine: Affine, fill: Float[Array, " channels"]) -> Image:
    """Returns the image read at other places, bilinearly, as Pillow's `Image.transform` does.

    On a TPU, which gathers one number after the other, a rotation is three shears, each linear along one axis, so its
    pixels differ a little. timm interpolates by cubics half of the time; here it is never.

    Args:
      image: whole levels, 0 to 255.
      affine: takes the place of a pixel of the result, in pixels from the corner, to where it is read. Determinant 1.
      fill: levels of what is read outside of the image.
    """
    read = jax.lax.platform_dependent(image, affine, tpu=_read_by_shears, default=_read)
    inside = _inside(affine, *image.shape[:2])
    return jnp.where(inside[..., None], jnp.floor(read + 1e-3), fill[None, None, :])


def _places(affine: Affine, height: int, width: int) -> tuple[Array, Array]:
    x, y = jnp.arange(width)[None, :] + 0.5, jnp.arange(height)[:, None] + 0.5
    return tuple(row[0] * x + row[1] * y + row[2] for row in affine)


def _inside(affine: Affine, height: int, width: int) -> Bool[Array, "height width"]:
    at_x, at_y = _places(affine, height, width)
    return (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)


def _read(image: Image, affine: Affine) -> Image:
    height, width, _ = image.shape
    at_x, at_y = _places(affine, height, width)
    left, top = jnp.floor(at_x - 0.5), jnp.floor(at_y - 0.5)
    right_share, low_share = (at_x - 0.5 - left)[..., None], (at_y - 0.5 - top)[..., None]
    columns = [jnp.clip(left + i, 0, width - 1).astype(jnp.int32) for i in (0, 1)]
    rows = [jnp.clip(top + i, 0, height - 1).astype(jnp.int32) for i in (0, 1)]
    upper, lower = (image[row, columns[0]] * (1 - right_share) + image[row, columns[1]] * right_share for row in rows)
    return upper * (1 - low_share) + lower * low_share


# The steepest shears of a rotation by 30 degrees push rows to the side by this share of the image's height.
_OVERHANG = math.tan(math.radians(15)) / 2


def _read_by_shears(image: Image, affine: Affine) -> Image:
    """Reads rows, then columns, then rows again, each moved as a whole: the affine map is the product of three shears.

    With the image's middle as origin, and X(a) the map (x, y) -> (x + a y, y), Y(a) the map (x, y) -> (x, y + a x):
    M = X(p) Y(d) X(q). A row is moved by whole pixels in steps of powers of two, taken or left, and by the rest
    linearly.
    """
    height, width, _ = image.shape
    (a, b, _), (d, e, _) = affine
    turned = d != 0
    safe = jnp.where(turned, d, 1.0)
    p, q = jnp.where(turned, (a - 1) / safe, 0.0), jnp.where(turned, (e - 1) / safe, b)
    middle = jnp.array([width / 2, height / 2])
    move_x, move_y = affine[:, 2] + affine[:, :2] @ middle - middle
    move_x = move_x - p * move_y
    move_y = move_y - d * move_x

    aside, edge = math.ceil(_OVERHANG * height) + 2, 2
    canvas = jnp.pad(image, ((edge, edge), (aside, aside), (0, 0)), mode="edge")
    y = jnp.arange(height + 2 * edge) - edge + 0.5 - height / 2
    x = jnp.arange(width + 2 * aside) - aside + 0.5 - width / 2
    canvas = _moved(canvas, p * y, axis=1)
    canvas = _moved(canvas, d * x + move_y, axis=0)
    canvas = _moved(canvas, q * y + move_x, axis=1)
    return canvas[edge : edge + height, aside : aside + width]


def _moved(image: Image, by: Float[Array, " lines"], axis: int) -> Image:
    """Returns the image with each row (axis 1) or column (axis 0) read `by` so many pixels further on, round and round.

    What comes round is never seen: it is read outside of the image.
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

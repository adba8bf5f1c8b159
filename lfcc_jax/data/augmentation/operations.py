"""RandAugment's operations on one image, each what Pillow does to bytes.

Only four things are ever done to an image: an affine map, a table of new gray levels for each channel, a blend with its
gray picture, and a blend with its blurred picture. So a batch in which every image has an operation of its own needs
four passes under `vmap`, and not one for each of the fifteen operations; those that an image does not need leave it as
it is.

Images are float32 `[height, width, channels]` that hold whole gray levels, 0 to 255.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lfcc_jax.data.augmentation.warp import warp

Image = Float[Array, "height width channels"]
Tables = Float[Array, "channels levels"]

NAMES = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast"),
    *("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)
# Those with which timm's RandAugment turns one way or the other at random.
SIGNED = ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")


class Change(NamedTuple):
    """What is done to an image.

    Attributes:
      affine: `[2, 3]`, takes the place of a pixel of the result, in pixels from the corner, to where it is read.
      tables: the new level of each level, by channel.
      color: how much of the color is left: 0 gives the gray picture, 1 changes nothing.
      sharpness: 0 gives the blurred picture, 1 changes nothing.
    """

    affine: Float[Array, "2 3"]
    tables: Tables
    color: Float[Array, ""]
    sharpness: Float[Array, ""]


def change(image: Image, operation: Int[Array, ""], argument: Float[Array, ""]) -> Change:
    """Returns what an operation does to an image.

    Args:
      image: to be changed.
      operation: a place in `NAMES`; any other number changes nothing.
      argument: degrees to `rotate`; bits that `posterize` keeps; the level from which `solarize` inverts; what
        `solarize_add` adds; a factor for `color`, `contrast`, `brightness`, `sharpness`, of which 1 changes nothing;
        pixels by the pixel for `shear_x` and `shear_y`; a share of the image for `translate_x` and `translate_y`.
    """
    height, width, channels = image.shape
    levels = jnp.broadcast_to(jnp.arange(256.0), (channels, 256))
    counts = histogram(image)

    def is_(name: str) -> Array:
        return operation == NAMES.index(name)

    tables = levels
    for name, table in (
        ("autocontrast", _stretched(counts)),
        ("equalize", _equalized(counts)),
        ("invert", 255 - levels),
        ("posterize", levels - levels % 2.0 ** (8 - argument)),
        ("solarize", jnp.where(levels < argument, levels, 255 - levels)),
        ("solarize_add", jnp.where(levels < 128, jnp.minimum(levels + argument, 255), levels)),
        ("contrast", _blend(_mean_level(image), levels, argument)),
        ("brightness", _blend(jnp.zeros(()), levels, argument)),
    ):
        tables = jnp.where(is_(name), table, tables)

    angle = jnp.deg2rad(jnp.where(is_("rotate"), argument, 0.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shear_x, shear_y = (jnp.where(is_(name), argument, 0.0) for name in ("shear_x", "shear_y"))
    move_x, move_y = (jnp.where(is_(name), argument, 0.0) for name in ("translate_x", "translate_y"))
    x, y = width / 2, height / 2  # the middle stays where it is
    affine = jnp.array(
        [
            [cos, shear_x - sin, x - cos * x + sin * y + move_x * width],
            [shear_y + sin, cos, y - sin * x - cos * y + move_y * height],
        ]
    )
    color, sharpness = (jnp.where(is_(name), argument, 1.0) for name in ("color", "sharpness"))
    return Change(affine, tables, color, sharpness)


def apply(image: Image, what: Change, fill: Float[Array, " channels"]) -> Image:
    """Returns the changed image; `fill` are the levels outside of it."""
    image = warp(image, what.affine, fill)
    image = look_up(image, what.tables)
    if image.shape[-1] == 3:
        image = _blend(_gray(image), image, what.color)
    return _blend(_blurred(image), image, what.sharpness)


def histogram(image: Image) -> Float[Array, "channels levels"]:
    """Returns how many pixels of each channel have each of the 256 levels."""
    return jax.lax.platform_dependent(image, tpu=_count_by_products, default=_count)


def look_up(image: Image, tables: Tables) -> Image:
    """Returns for each pixel what its channel's table has for its level."""
    return jax.lax.platform_dependent(image, tables, tpu=_look_up_by_products, default=_look_up)


def _count(image: Image) -> Float[Array, "channels levels"]:
    channels = image.shape[-1]
    places = image.reshape(-1, channels).astype(jnp.int32) + 256 * jnp.arange(channels)[None, :]
    return jnp.zeros(256 * channels).at[places.ravel()].add(1.0).reshape(channels, 256)


def _look_up(image: Image, tables: Tables) -> Image:
    levels = image.astype(jnp.int32)
    return jnp.stack([table[levels[..., c]] for c, table in enumerate(tables)], axis=-1)


# A TPU scatters and gathers one number after the other, but multiplies matrices fast. A level is sixteen times its high
# digit and its low digit; what is wanted of all pairs of digits is a product of their indicators.


def _count_by_products(image: Image) -> Float[Array, "channels levels"]:
    high, low = _digits(image)
    return jnp.einsum("nch,ncl->chl", high, low).reshape(image.shape[-1], 256)


def _look_up_by_products(image: Image, tables: Tables) -> Image:
    high, low = _digits(image)
    # Levels have eight bits, as many as bfloat16 holds exactly, in which a TPU multiplies.
    rows = jnp.einsum("nch,chl->ncl", high, tables.reshape(-1, 16, 16))
    return jnp.einsum("ncl,ncl->nc", rows, low).reshape(image.shape)


def _digits(image: Image) -> tuple[Float[Array, "pixels channels 16"], Float[Array, "pixels channels 16"]]:
    levels = image.reshape(-1, image.shape[-1]).astype(jnp.int32)
    return jax.nn.one_hot(levels // 16, 16), jax.nn.one_hot(levels % 16, 16)


def _stretched(counts: Float[Array, "channels levels"]) -> Tables:
    """Returns `ImageOps.autocontrast`'s table: the darkest level becomes 0, the lightest 255."""
    lowest = jnp.argmax(counts > 0, axis=1)[:, None].astype(jnp.float32)
    highest = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1)[:, None].astype(jnp.float32)
    levels = jnp.arange(256.0)[None, :]
    # In whole numbers, so that no rounding is near a whole level.
    stretched = jnp.floor((levels - lowest) * 255 / jnp.maximum(highest - lowest, 1) + 1e-4)
    return jnp.where(highest > lowest, jnp.clip(stretched, 0, 255), levels)


def _equalized(counts: Float[Array, "channels levels"]) -> Tables:
    """Returns `ImageOps.equalize`'s table, after which all levels are about as frequent."""
    counts = counts.astype(jnp.int32)
    last = jnp.take_along_axis(counts, 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1)[:, None], axis=1)
    step = (counts.sum(axis=1, keepdims=True) - last) // 255
    before = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255).astype(jnp.float32)
    return jnp.where(step > 0, table, jnp.arange(256.0)[None, :])


def _gray(image: Image) -> Float[Array, "height width 1"]:
    """Returns Pillow's gray picture of a color one, in its fixed-point arithmetic."""
    red, green, blue = (image[..., c].astype(jnp.int32) for c in range(3))
    gray = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return gray.astype(jnp.float32)[..., None]


def _mean_level(image: Image) -> Float[Array, ""]:
    gray = _gray(image) if image.shape[-1] == 3 else image
    return jnp.floor(gray.mean() + 0.5)


def _blurred(image: Image) -> Image:
    """Returns `ImageFilter.SMOOTH` of the image: 3 x 3 pixels, the middle one five times; the border stays."""
    height, width, _ = image.shape
    columns = sum(image[i : height - 2 + i] for i in range(3))
    square = sum(columns[:, j : width - 2 + j] for j in range(3))
    inner = jnp.floor((square + 4 * image[1:-1, 1:-1]) / 13 + 0.5)
    return image.at[1:-1, 1:-1].set(inner)


def _blend(degenerate: Array, image: Array, factor: Array) -> Array:
    """Returns Pillow's `Image.blend`, which cuts off fractions of a level."""
    degenerate = degenerate if degenerate.ndim else degenerate.reshape((1,) * image.ndim)
    mixed = degenerate + factor.astype(jnp.float32) * (image - degenerate)
    return jnp.where(factor == 1, image, jnp.floor(jnp.clip(mixed, 0, 255)))

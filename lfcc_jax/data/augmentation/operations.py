"""RandAugment's operations on one image, with the results of Pillow on uint8 images.

All operations are special cases of four steps: an affine map, a lookup table for each channel, a blend with the
grayscale image, and a blend with the blurred image. A batch in which every image has a different operation thus needs
four passes under `vmap` instead of one for each of the fifteen operations. Steps that an image does not need are the
identity, and are skipped where images are processed one by one.

Images are `[height, width, channels]` with integer levels, 0 to 255, in float32 or uint8.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from lfcc_jax.data.augmentation.warp import warp

Image = Float[Array, "height width channels"]
Levels = Image | UInt8[Array, "height width channels"]
Tables = Float[Array, "channels levels"]

NAMES = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast"),
    *("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)
# Operations whose argument has a random sign in timm's RandAugment.
SIGNED = ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")


class Change(NamedTuple):
    """Parameters of the four steps.

    Attributes:
      affine: `[2, 3]`, maps output to input coordinates, in pixels from the corner.
      tables: New value of each level, by channel.
      color: Saturation: 0 gives the grayscale image, 1 the original.
      sharpness: 0 gives the blurred image, 1 the original.
    """

    affine: Float[Array, "2 3"]
    tables: Tables
    color: Float[Array, ""]
    sharpness: Float[Array, ""]


def change(image: Levels, operation: Int[Array, ""], argument: Float[Array, ""]) -> Change:
    """Returns the parameters of an operation on an image.

    Args:
      image: Input image.
      operation: Index in `NAMES`; any other number is the identity.
      argument: Angle in degrees for `rotate`; number of bits to keep for `posterize`; threshold for `solarize`; summand
        for `solarize_add`; factor for `color`, `contrast`, `brightness` and `sharpness`, where 1 is the identity; shift
        per pixel for `shear_x` and `shear_y`; fraction of the image's size for `translate_x` and `translate_y`.
    """
    height, width, channels = image.shape
    levels = jnp.broadcast_to(jnp.arange(256.0), (channels, 256))

    def is_(*names: str) -> Array:
        return (operation == jnp.asarray([NAMES.index(name) for name in names])).any()

    image = image.astype(jnp.float32)
    counted = is_("autocontrast", "equalize")
    counts = jax.lax.cond(counted, histogram, lambda *_: jnp.zeros((channels, 256)), image, counted)
    mean = jax.lax.cond(is_("contrast"), _mean_level, lambda _: jnp.zeros(()), image)

    tables = levels
    for name, table in (
        ("autocontrast", _autocontrast_table(counts)),
        ("equalize", _equalize_table(counts)),
        ("invert", 255 - levels),
        ("posterize", levels - levels % 2.0 ** (8 - argument)),
        ("solarize", jnp.where(levels < argument, levels, 255 - levels)),
        ("solarize_add", jnp.where(levels < 128, jnp.minimum(levels + argument, 255), levels)),
        ("contrast", _blend(mean, levels, argument)),
        ("brightness", _blend(jnp.zeros(()), levels, argument)),
    ):
        tables = jnp.where(is_(name), table, tables)

    angle = jnp.deg2rad(jnp.where(is_("rotate"), argument, 0.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shear_x, shear_y = (jnp.where(is_(name), argument, 0.0) for name in ("shear_x", "shear_y"))
    move_x, move_y = (jnp.where(is_(name), argument, 0.0) for name in ("translate_x", "translate_y"))
    x, y = width / 2, height / 2  # the center is fixed
    affine = jnp.array(
        [
            [cos, shear_x - sin, x - cos * x + sin * y + move_x * width],
            [shear_y + sin, cos, y - sin * x - cos * y + move_y * height],
        ]
    )
    color, sharpness = (jnp.where(is_(name), argument, 1.0) for name in ("color", "sharpness"))
    return Change(affine, tables, color, sharpness)


def apply(image: Levels, what: Change, fill: Float[Array, " channels"]) -> Levels:
    """Applies the four steps; `fill` is the value of pixels outside of the image. Between steps, images are uint8."""

    def step(needed: Array, function: Callable[[Image], Image], levels: Array) -> Array:
        def changed(levels: Array) -> Array:
            return function(levels.astype(jnp.float32)).astype(jnp.uint8)

        return jax.lax.cond(needed, changed, lambda levels: levels, levels)

    moves = (what.affine != jnp.eye(2, 3)).any()
    recolors = (what.tables != jnp.arange(256.0)[None, :]).any()
    levels = image.astype(jnp.uint8)
    levels = step(moves, lambda x: warp(x, what.affine, fill), levels)
    levels = step(recolors, lambda x: look_up(x, what.tables), levels)
    if image.shape[-1] == 3:
        levels = step(what.color != 1, lambda x: _blend(_gray(x), x, what.color), levels)
    levels = step(what.sharpness != 1, lambda x: _blend(_blurred(x), x, what.sharpness), levels)
    return levels.astype(image.dtype)


def histogram(image: Image, needed: Bool[Array, ""]) -> Float[Array, "channels levels"]:
    """Returns the number of pixels at each of the 256 levels, by channel. If not `needed`, they may be zeros."""
    return jax.lax.platform_dependent(image, needed, tpu=_count_with_matmul, default=_count)


def look_up(image: Image, tables: Tables) -> Image:
    """Applies each channel's lookup table."""
    return jax.lax.platform_dependent(image, tables, tpu=_look_up_with_matmul, default=_look_up)


def _count(image: Image, needed: Array) -> Float[Array, "channels levels"]:
    channels = image.shape[-1]
    bins = image.reshape(-1, channels).astype(jnp.int32) + 256 * jnp.arange(channels, dtype=jnp.int32)[None, :]
    # Under `vmap`, `cond` runs this for every image. On a GPU, its time is that of atomic additions, and an index out
    # of bounds adds nothing.
    bins = jnp.where(needed, bins, 256 * channels)
    return jnp.zeros(256 * channels).at[bins.ravel()].add(1.0).reshape(channels, 256)


def _look_up(image: Image, tables: Tables) -> Image:
    levels = image.astype(jnp.int32)
    return jnp.stack([table[levels[..., c]] for c, table in enumerate(tables)], axis=-1)


# A TPU scatters and gathers serially, but multiplies matrices fast. Each level is split into two hexadecimal digits;
# counts and lookups are matrix products of the digits' one-hot encodings.


def _count_with_matmul(image: Image, _: Array) -> Float[Array, "channels levels"]:
    high, low = _digits(image)
    return jnp.einsum("nch,ncl->chl", high, low).reshape(image.shape[-1], 256)


def _look_up_with_matmul(image: Image, tables: Tables) -> Image:
    high, low = _digits(image)
    # TPUs multiply in bfloat16, which represents integers of eight bits exactly.
    rows = jnp.einsum("nch,chl->ncl", high, tables.reshape(-1, 16, 16))
    return jnp.einsum("ncl,ncl->nc", rows, low).reshape(image.shape)


def _digits(image: Image) -> tuple[Float[Array, "pixels channels 16"], Float[Array, "pixels channels 16"]]:
    levels = image.reshape(-1, image.shape[-1]).astype(jnp.int32)
    return jax.nn.one_hot(levels // 16, 16), jax.nn.one_hot(levels % 16, 16)


def _autocontrast_table(counts: Float[Array, "channels levels"]) -> Tables:
    """Returns `ImageOps.autocontrast`'s table, which maps the darkest level to 0 and the lightest to 255."""
    lowest = jnp.argmax(counts > 0, axis=1)[:, None].astype(jnp.float32)
    highest = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1)[:, None].astype(jnp.float32)
    levels = jnp.arange(256.0)[None, :]
    # Multiplies before dividing, so that rounding errors stay below 1e-4.
    stretched = jnp.floor((levels - lowest) * 255 / jnp.maximum(highest - lowest, 1) + 1e-4)
    return jnp.where(highest > lowest, jnp.clip(stretched, 0, 255), levels)


def _equalize_table(counts: Float[Array, "channels levels"]) -> Tables:
    """Returns `ImageOps.equalize`'s table, which flattens the histogram."""
    counts = counts.astype(jnp.int32)
    last = jnp.take_along_axis(counts, 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1)[:, None], axis=1)
    step = (counts.sum(axis=1, keepdims=True) - last) // 255
    before = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255).astype(jnp.float32)
    return jnp.where(step > 0, table, jnp.arange(256.0)[None, :])


def _gray(image: Image) -> Float[Array, "height width 1"]:
    """Returns Pillow's grayscale version of a color image, with the same fixed-point arithmetic."""
    red, green, blue = (image[..., c].astype(jnp.int32) for c in range(3))
    gray = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return gray.astype(jnp.float32)[..., None]


def _mean_level(image: Image) -> Float[Array, ""]:
    gray = _gray(image) if image.shape[-1] == 3 else image
    return jnp.floor(gray.mean() + 0.5)


def _blurred(image: Image) -> Image:
    """Returns `ImageFilter.SMOOTH` of the image: a 3 x 3 mean with weight 5 at the center; the border is unchanged."""
    height, width, _ = image.shape
    columns = sum(image[i : height - 2 + i] for i in range(3))
    square = sum(columns[:, j : width - 2 + j] for j in range(3))
    inner = jnp.floor((square + 4 * image[1:-1, 1:-1]) / 13 + 0.5)
    return image.at[1:-1, 1:-1].set(inner)


def _blend(degenerate: Array, image: Array, factor: Array) -> Array:
    """Returns Pillow's `Image.blend`, which truncates to integers."""
    degenerate = degenerate if degenerate.ndim else degenerate.reshape((1,) * image.ndim)
    mixed = degenerate + factor.astype(jnp.float32) * (image - degenerate)
    return jnp.where(factor == 1, image, jnp.floor(jnp.clip(mixed, 0, 255)))

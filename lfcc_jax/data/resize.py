"""Test images of one size, resized on the device as timm resizes them on the host."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from lfcc_jax.data.decode import resized_side

_METHODS = {"bilinear": "linear", "bicubic": "cubic"}


def central_crop(
    images: UInt8[Array, "batch height width channels"], size: int, crop: float = 1.0, interpolation: str = "bicubic"
) -> Float[Array, "batch size size channels"]:
    """Returns the middle of square images that were resized to `size / crop` pixels, as floats in [0, 1].

    Pillow's interpolation (its bicubic kernel has a = -0.5, and both shrink without aliasing), rounded to whole grey
    levels as Pillow rounds them.

    Args:
      images: uint8.
      size: side of the result, in pixels.
      crop: share of the resized image, along each side, that is kept.
      interpolation: `bilinear` or `bicubic`.
    """
    side = resized_side(size, crop)
    batch, _, _, channels = images.shape
    shape = (batch, side, side, channels)
    resized = jax.image.resize(images.astype(jnp.float32), shape, _METHODS[interpolation], antialias=True)
    edge = round((side - size) / 2)
    middle = resized[:, edge : edge + size, edge : edge + size]
    return jnp.clip(jnp.round(middle), 0, 255) / 255

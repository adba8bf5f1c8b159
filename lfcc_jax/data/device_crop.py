"""Resizes and crops test images of one size on the device, with the same values as Pillow (and timm) on the host."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from lfcc_jax.data.host_crops import resized_side

# Fractional bits of Pillow's integer weights. With 8 bits of a pixel and 2 of overshoot, they fill an int32.
_BITS = 22


def to_float(images: jax.Array) -> jax.Array:
    """Returns uint8 images as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def central_crop(
    images: UInt8[Array, "batch height width channels"], size: int, crop: float = 1.0, interpolation: str = "bicubic"
) -> Float[Array, "batch size size channels"]:
    """Returns the central crop of square images resized to `size / crop` pixels, as floats in [0, 1].

    All values equal Pillow's: integer weights, antialiasing when downsampling, and rounding and clipping between the
    horizontal and the vertical pass.

    Args:
      images: Square images.
      size: Side of the result, in pixels.
      crop: Fraction of the resized image, along each side, that is kept.
      interpolation: `bilinear` or `bicubic`.
    """
    side = resized_side(size, crop)
    edge = round((side - size) / 2)
    weights = jnp.asarray(_weights(images.shape[1], side, interpolation)[edge : edge + size])

    def to_levels(sums: Int32[Array, "..."]) -> Int32[Array, "..."]:
        return jnp.clip((sums + (1 << (_BITS - 1))) >> _BITS, 0, 255)

    rows = to_levels(jnp.einsum("bhwc,vw->bhvc", images.astype(jnp.int32), weights))
    return to_levels(jnp.einsum("bhvc,uh->buvc", rows, weights)).astype(jnp.float32) / 255


def _weights(size: int, resized: int, interpolation: str) -> Int32[np.ndarray, "resized size"]:
    """Returns the weight of each pixel in each resized pixel, as in Pillow's `precompute_coeffs`."""
    scale = size / resized
    stretch = max(scale, 1.0)
    reach = {"bilinear": 1, "bicubic": 2}[interpolation] * stretch
    center = (np.arange(resized)[:, None] + 0.5) * scale
    pixel = np.arange(size)
    # Pillow truncates.
    inside = (pixel >= np.trunc(center - reach + 0.5)) & (pixel < np.trunc(center + reach + 0.5))
    x = np.abs((pixel - center + 0.5) / stretch)
    if interpolation == "bilinear":
        weights = np.maximum(1 - x, 0)
    else:  # a = -0.5
        near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights = np.where(inside, weights, 0)
    weights /= weights.sum(1, keepdims=True)
    return np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)

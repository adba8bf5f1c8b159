"""Random crops and flips. Images are float32 `[height, width, channels]`, in any range."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

_ATTEMPTS = 10
# The range of aspect ratios in torchvision and timm.
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def flip(key: PRNGKeyArray, image: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
    """Flips the image horizontally with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def padded_crop(
    key: PRNGKeyArray, image: Float[Array, "height width channels"], padding: int
) -> Float[Array, "height width channels"]:
    """Returns the image shifted by up to `padding` pixels along each axis, padded with zeros."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


def random_box(
    key: PRNGKeyArray, height: int, width: int, scale: tuple[float, float], log_ratio: tuple[float, float] = _LOG_RATIO
) -> tuple[Array, Array, Array, Array, Array]:
    """Returns top, left, height and width of a random box in an image, in pixels, and whether a box fits.

    Its area is a fraction of the image's, uniform in `scale`, its aspect ratio (width / height) log-uniform, its
    position uniform. The first of ten attempts that fits is used. torchvision's `RandomResizedCrop` and timm's
    `RandomErasing` have the same distribution.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(area_key, (_ATTEMPTS,), minval=scale[0], maxval=scale[1])
    ratio = jnp.exp(jax.random.uniform(ratio_key, (_ATTEMPTS,), minval=log_ratio[0], maxval=log_ratio[1]))
    w, h = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits)
    h, w = h[first], w[first]
    top = jnp.floor(jax.random.uniform(top_key) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (width - w + 1))
    return top, left, h, w, fits.any()


def random_resized_crop(
    key: PRNGKeyArray, image: Float[Array, "height width channels"], size: int, scale: tuple[float, float]
) -> Float[Array, "size size channels"]:
    """Returns a random crop of the image, resized: torchvision's `RandomResizedCrop`, as timm uses it.

    The interpolation is bilinear or bicubic, with probability 1/2 each, and antialiased as in Pillow. Unlike in
    torchvision, pixels at the border of the crop are interpolated with those outside of it.

    Args:
      key: PRNG key.
      image: Image of any height and width.
      size: Side of the result, in pixels.
      scale: Smallest and largest fraction of the image's area in the crop.
    """
    box_key, method_key = jax.random.split(key)
    height, width, channels = image.shape
    top, left, h, w, fits = random_box(box_key, height, width, scale)
    # Fall back to the whole image.
    h, w = jnp.where(fits, h, height), jnp.where(fits, w, width)
    top, left = jnp.where(fits, top, 0), jnp.where(fits, left, 0)
    zoom = jnp.stack([size / h, size / w])
    translation = -jnp.stack([top, left]) * zoom

    def resized(method: str) -> Array:
        shape = (size, size, channels)
        return jax.image.scale_and_translate(image, shape, (0, 1), zoom, translation, method=method, antialias=True)

    return jnp.where(jax.random.bernoulli(method_key), resized("cubic"), resized("linear"))

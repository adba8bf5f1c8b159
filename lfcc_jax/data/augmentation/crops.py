"""Where an image is cut, and whether it is mirrored. Images are float32 `[height, width, channels]`, any range."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

_ATTEMPTS = 10
# The range of aspect ratios in torchvision and timm.
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def flip(key: PRNGKeyArray, image: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
    """Returns the image or its mirror image, each half of the time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def padded_crop(
    key: PRNGKeyArray, image: Float[Array, "height width channels"], padding: int
) -> Float[Array, "height width channels"]:
    """Returns the image moved by up to `padding` pixels each way; zeros come in from outside."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


def random_box(
    key: PRNGKeyArray, height: int, width: int, scale: tuple[float, float], log_ratio: tuple[float, float] = _LOG_RATIO
) -> tuple[Array, Array, Array, Array, Array]:
    """Returns top, left, height and width of a random box in an image, in pixels, and whether there is one.

    Its area is uniform in `scale`, a share of the image's, its aspect ratio (width over height) log-uniform, its place
    uniform. It is the first of ten attempts that fits. torchvision's `RandomResizedCrop` and timm's `RandomErasing`
    both draw so.
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
    """Returns a random part of the image, resized: torchvision's `RandomResizedCrop`, as timm uses it.

    The interpolation is linear or cubic, each half of the time. A part that is shrunk is smoothed, as by Pillow.
    Pixels at the part's border are mixed with those outside of it, which torchvision cuts off first.

    Args:
      key: of the random numbers.
      image: of any height and width.
      size: side of the result, in pixels.
      scale: least and largest share of the image's area that is kept.
    """
    box_key, method_key = jax.random.split(key)
    height, width, channels = image.shape
    top, left, h, w, found = random_box(box_key, height, width, scale)
    # Otherwise the largest part in the middle; that of a square image is all of it.
    h, w = jnp.where(found, h, height), jnp.where(found, w, width)
    top, left = jnp.where(found, top, 0), jnp.where(found, left, 0)
    zoom = jnp.stack([size / h, size / w])
    move = -jnp.stack([top, left]) * zoom

    def resized(method: str) -> Array:
        shape = (size, size, channels)
        return jax.image.scale_and_translate(image, shape, (0, 1), zoom, move, method=method, antialias=True)

    return jnp.where(jax.random.bernoulli(method_key), resized("cubic"), resized("linear"))

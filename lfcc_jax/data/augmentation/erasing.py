"""Random erasing (Zhong et al., 2020) as in timm: replaces a box of the image by noise."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lfcc_jax.data.augmentation.crops import random_box

_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))


def random_erasing(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    probability: float,
    mean: Float[Array, " channels"],
    std: Float[Array, " channels"],
) -> Float[Array, "height width channels"]:
    """Replaces a box of the image by noise, with the given probability.

    timm fills the box of the normalized image with standard normal noise; before normalization, this is noise with the
    data's mean and standard deviation. The box covers 0.02 to 1/3 of the image's area.

    Args:
      key: PRNG key.
      image: Image in [0, 1].
      probability: Probability of erasing.
      mean: Mean of the data, by channel.
      std: Standard deviation of the data, by channel.
    """
    apply_key, box_key, noise_key = jax.random.split(key, 3)
    height, width, channels = image.shape
    top, left, h, w, fits = random_box(box_key, height, width, _AREA, _LOG_RATIO)
    y, x = jnp.arange(float(height))[:, None, None], jnp.arange(float(width))[None, :, None]
    box: Array = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    erase = fits & jax.random.bernoulli(apply_key, probability)

    def erased(image: Array) -> Array:
        noise = mean[None, None, :] + std[None, None, :] * jax.random.normal(noise_key, (height, width, channels))
        return jnp.where(box, noise, image)

    return jax.lax.cond(erase, erased, lambda image: image, image)

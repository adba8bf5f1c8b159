"""Random erasing (Zhong et al., 2020) as in timm: a box of noise in the image."""

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
    """Returns the image, or with a probability the image with a box of noise in it.

    timm erases the normalized image, with noise of the standard normal distribution; before normalization that is noise
    of the data's mean and standard deviation. The box has 0.02 to 1/3 of the image's area.

    Args:
      key: of the random numbers.
      image: in [0, 1].
      probability: of erasing.
      mean: of the data, by channel.
      std: of the data, by channel.
    """
    done_key, box_key, noise_key = jax.random.split(key, 3)
    height, width, channels = image.shape
    top, left, h, w, found = random_box(box_key, height, width, _AREA, _LOG_RATIO)
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    box: Array = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    done = found & jax.random.bernoulli(done_key, probability)
    noise = mean[None, None, :] + std[None, None, :] * jax.random.normal(noise_key, (height, width, channels))
    return jnp.where(box & done, noise, image)

"""Brightness, contrast and saturation changed at random, in random order: torchvision's ColorJitter without hue."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lfcc_jax.data.augmentation.operations import NAMES, Image, apply, change


def color_jitter(key: PRNGKeyArray, image: Image, strength: float, fill: Float[Array, " channels"]) -> Image:
    """Returns the image with brightness, contrast and saturation times factors in [1 - strength, 1 + strength].

    Args:
      key: of the random numbers.
      image: whole levels, 0 to 255.
      strength: at least 0; factors stay at least 0.
      fill: as in `randaugment`; nothing is moved, so it is never seen.
    """
    order_key, factor_key = jax.random.split(key)
    known = jnp.array([NAMES.index(name) for name in ("brightness", "contrast", "color")])
    order = jax.random.permutation(order_key, known)
    factors = jax.random.uniform(factor_key, (3,), minval=max(0.0, 1 - strength), maxval=1 + strength)
    for i in range(3):
        image = apply(image, change(image, order[i], factors[i]), fill)
    return image

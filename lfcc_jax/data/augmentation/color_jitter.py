"""Random brightness, contrast and saturation in random order: torchvision's ColorJitter without hue."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lfcc_jax.data.augmentation.operations import NAMES, Image, apply, change


def color_jitter(key: PRNGKeyArray, image: Image, strength: float, fill: Float[Array, " channels"]) -> Image:
    """Returns the image with brightness, contrast and saturation scaled by factors in [1 - strength, 1 + strength].

    Args:
      key: PRNG key.
      image: Integer levels, 0 to 255.
      strength: Non-negative; factors are clipped at 0.
      fill: Unused, since these operations do not move pixels.
    """
    order_key, factor_key = jax.random.split(key)
    operations = jnp.array([NAMES.index(name) for name in ("brightness", "contrast", "color")])
    order = jax.random.permutation(order_key, operations)
    factors = jax.random.uniform(factor_key, (3,), minval=max(0.0, 1 - strength), maxval=1 + strength)

    def step(image: Image, of_step: tuple[Array, Array]) -> tuple[Image, None]:
        return apply(image, change(image, *of_step), fill), None

    return jax.lax.scan(step, image, (order, factors))[0]

"""RandAugment (Cubuk et al., 2019) as in timm: random operations of similar strength for each image."""

import re
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lfcc_jax.arguments import Between, Fraction, checked_arguments
from lfcc_jax.data.augmentation.operations import NAMES, SIGNED, Image, Levels, apply, change
from lfcc_jax.errors import UserError, shown


class Policy(NamedTuple):
    """A RandAugment policy.

    Attributes:
      magnitude: Mean strength, 0 to 10.
      spread: Standard deviation of the strength.
      layers: Number of operations drawn for each image, with replacement.
      probability: Probability of applying each drawn operation.
    """

    magnitude: Annotated[float, Between(0, 10)]
    spread: Annotated[float, Between(0, 100)]
    layers: Annotated[int, Between(1, 16)]
    probability: Annotated[float, Fraction]


_SETTINGS = {"m": "magnitude", "mstd": "spread", "n": "layers", "p": "probability"}


def parse_policy(text: str) -> Policy:
    """Parses a policy in timm's notation, such as `rand-m9-mstd0.5-inc1`.

    Args:
      text: `rand`, then `m` for the magnitude (9), `mstd` for its spread (0), `n` for the layers (2), `p` for the
        probability (0.5), and `inc1`, which is required: without it, some of timm's operations weaken as the magnitude
        grows.

    Raises:
      UserError: if the text is not a valid policy, or a number is out of bounds.

    Examples:
      >>> parse_policy("rand-m9-mstd0.5-inc1")
      Policy(magnitude=9.0, spread=0.5, layers=2, probability=0.5)
    """
    where = "config.data.augmentation.randaugment"
    name, *parts = text.split("-")
    settings = {"magnitude": 9.0, "spread": 0.0, "layers": 2, "probability": 0.5}
    if name != "rand" or "inc1" not in parts:
        raise UserError(f"{where} must be a policy like 'rand-m9-mstd0.5-inc1', got {shown(text)}")
    for part in parts:
        match = re.fullmatch(r"(m|mstd|p)(\d+\.?\d*|\.\d+)|(n)(\d+)", part)
        if match:
            key, value = _SETTINGS[match[1] or match[3]], match[2] or match[4]
            settings[key] = int(value[:9]) if key == "layers" else float(value)
        elif part != "inc1":
            raise UserError(
                f"{where} must consist of m, mstd, n and p, each with a number, and inc1, got {shown(part)}"
            )
    return Policy(**checked_arguments(Policy, settings, where))


def randaugment(key: PRNGKeyArray, image: Image, policy: Policy, fill: Float[Array, " channels"]) -> Image:
    """Returns the image after a random draw of the policy's operations.

    Args:
      key: PRNG key.
      image: Integer levels, 0 to 255.
      policy: Policy from `parse_policy`.
      fill: Value of pixels from outside of the image, by channel.
    """

    def layer(image: Levels, layer_key: PRNGKeyArray) -> tuple[Levels, None]:
        operation_key, apply_key, magnitude_key, sign_key = jax.random.split(layer_key, 4)
        operation = jax.random.randint(operation_key, (), 0, len(NAMES))
        magnitude = jnp.clip(policy.magnitude + policy.spread * jax.random.normal(magnitude_key), 0, 10)
        argument = arguments(magnitude, jax.random.bernoulli(sign_key))[operation]
        operation = jnp.where(jax.random.bernoulli(apply_key, policy.probability), operation, -1)
        return apply(image, change(image, operation, argument), fill), None

    # A loop, so that a layer is compiled once.
    levels, _ = jax.lax.scan(layer, image.astype(jnp.uint8), jax.random.split(key, policy.layers))
    return levels.astype(image.dtype)


def arguments(magnitude: Float[Array, ""], negative: Array) -> Float[Array, " operations"]:
    """Returns each operation's argument at a magnitude of 0 to 10, in the order of `NAMES`; `negative` flips the sign.

    These are timm's "increasing" operations: a larger magnitude is a larger change.
    """
    fraction = magnitude / 10
    sign = jnp.where(negative, -1.0, 1.0)
    zero = jnp.zeros(())
    enhanced = jnp.maximum(0.1, 1 + 0.9 * sign * fraction)
    levels = {
        "rotate": 30 * sign * fraction,
        "posterize": 4 - jnp.floor(4 * fraction),
        "solarize": 256 - jnp.minimum(256, jnp.floor(256 * fraction)),
        "solarize_add": jnp.minimum(128, jnp.floor(110 * fraction)),
        "shear_x": 0.3 * sign * fraction,
        "shear_y": 0.3 * sign * fraction,
        "translate_x": 0.45 * sign * fraction,
        "translate_y": 0.45 * sign * fraction,
    }
    return jnp.stack([levels.get(name, enhanced if name in SIGNED else zero) for name in NAMES])

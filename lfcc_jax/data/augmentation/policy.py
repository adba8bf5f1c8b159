"""RandAugment (Cubuk et al., 2019) as in timm: every image gets a few operations at random, of about one strength."""

import re
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lfcc_jax.arguments import Between, Fraction, checked_arguments
from lfcc_jax.data.augmentation.operations import NAMES, SIGNED, Image, apply, change
from lfcc_jax.errors import UserError, shown


class Policy(NamedTuple):
    """How strong, and how much.

    Attributes:
      magnitude: mean strength, 0 to 10.
      spread: its standard deviation.
      layers: how many operations are drawn for each image, with replacement.
      probability: with which each that was drawn is done.
    """

    magnitude: Annotated[float, Between(0, 10)]
    spread: Annotated[float, Between(0, 100)]
    layers: Annotated[int, Between(1, 16)]
    probability: Annotated[float, Fraction]


_SETTINGS = {"m": "magnitude", "mstd": "spread", "n": "layers", "p": "probability"}


def parse_policy(text: str) -> Policy:
    """Returns what a string like timm's `rand-m9-mstd0.5-inc1` says.

    Args:
      text: `rand`, then `m` the magnitude, `mstd` its spread (0), `n` the layers (2), `p` the probability (0.5), and
        `inc1`, without which some operations would be weaker at higher magnitudes, and which must be there.

    Raises:
      UserError: if the text is something else, or a number is out of bounds.

    Examples:
      >>> parse_policy("rand-m9-mstd0.5-inc1")
      Policy(magnitude=9.0, spread=0.5, layers=2, probability=0.5)
    """
    where = "config.data.augmentation.randaugment"
    name, *parts = text.split("-")
    found = {"magnitude": 9.0, "spread": 0.0, "layers": 2, "probability": 0.5}
    if name != "rand" or "inc1" not in parts:
        raise UserError(f"{where} must be a policy like 'rand-m9-mstd0.5-inc1', got {shown(text)}")
    for part in parts:
        match = re.fullmatch(r"(m|mstd|p)(\d+\.?\d*|\.\d+)|(n)(\d+)", part)
        if match:
            key, value = _SETTINGS[match[1] or match[3]], match[2] or match[4]
            found[key] = int(value[:9]) if key == "layers" else float(value)
        elif part != "inc1":
            raise UserError(
                f"{where} must consist of m, mstd, n and p, each with a number, and inc1, got {shown(part)}"
            )
    return Policy(**checked_arguments(Policy, found, where))


def randaugment(key: PRNGKeyArray, image: Image, policy: Policy, fill: Float[Array, " channels"]) -> Image:
    """Returns the image after the policy's operations.

    Args:
      key: of the random numbers.
      image: whole levels, 0 to 255.
      policy: from `parse_policy`.
      fill: levels of what an operation moves into the image.
    """
    for layer_key in jax.random.split(key, policy.layers):
        which, done, strength, sign = jax.random.split(layer_key, 4)
        operation = jax.random.randint(which, (), 0, len(NAMES))
        magnitude = jnp.clip(policy.magnitude + policy.spread * jax.random.normal(strength), 0, 10)
        argument = arguments(magnitude, jax.random.bernoulli(sign))[operation]
        operation = jnp.where(jax.random.bernoulli(done, policy.probability), operation, -1)
        image = apply(image, change(image, operation, argument), fill)
    return image


def arguments(magnitude: Float[Array, ""], negative: Array) -> Float[Array, " operations"]:
    """Returns what a magnitude of 0 to 10 means to each operation, in the order of `NAMES`; `negative` turns it round.

    As timm's "increasing" operations: the greater the magnitude, the greater the change.
    """
    share = magnitude / 10
    sign = jnp.where(negative, -1.0, 1.0)
    zero = jnp.zeros(())
    enhanced = jnp.maximum(0.1, 1 + 0.9 * sign * share)
    meant = {
        "rotate": 30 * sign * share,
        "posterize": 4 - jnp.floor(4 * share),
        "solarize": 256 - jnp.minimum(256, jnp.floor(256 * share)),
        "solarize_add": jnp.minimum(128, jnp.floor(110 * share)),
        "shear_x": 0.3 * sign * share,
        "shear_y": 0.3 * sign * share,
        "translate_x": 0.45 * sign * share,
        "translate_y": 0.45 * sign * share,
    }
    return jnp.stack([meant.get(name, enhanced if name in SIGNED else zero) for name in NAMES])

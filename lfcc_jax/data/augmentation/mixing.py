"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) as in timm: pairs image i with image B-1-i."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Mix(NamedTuple):
    """Settings of mixup and CutMix.

    Attributes:
      mixup: Alpha of mixup's Beta distribution; 0 disables mixup.
      cutmix: Alpha of CutMix's Beta distribution; 0 disables CutMix.
      switch: Probability of CutMix instead of mixup if both are enabled.
      probability: Probability of mixing a batch.
    """

    mixup: float
    cutmix: float
    switch: float
    probability: float


def mix(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    how: Mix,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Returns the mixed images, and their targets mixed with the same ratio.

    One ratio and one box are drawn for the whole batch.

    Args:
      key: PRNG key.
      images: Images in any range.
      targets: Class probabilities.
      how: Settings.
    """
    apply_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    height, width = images.shape[1:3]
    both_enabled = how.mixup > 0 and how.cutmix > 0
    use_cutmix = jax.random.bernoulli(switch_key, how.switch) if both_enabled else jnp.asarray(how.cutmix > 0)

    mixup_ratio = jax.random.beta(mixup_key, how.mixup, how.mixup) if how.mixup else jnp.ones(())
    cutmix_ratio = jax.random.beta(cutmix_key, how.cutmix, how.cutmix) if how.cutmix else jnp.ones(())
    inside, box_fraction = _box(box_key, height, width, jnp.sqrt(1 - cutmix_ratio))
    # Weights of the image itself, by pixel, and of its target; the rest is its partner's.
    image_weight = jnp.where(use_cutmix, 1.0 - inside, mixup_ratio)
    target_weight = jnp.where(use_cutmix, 1.0 - box_fraction, mixup_ratio)
    apply = jax.random.bernoulli(apply_key, how.probability)
    image_weight, target_weight = jnp.where(apply, image_weight, 1.0), jnp.where(apply, target_weight, 1.0)
    image_weight = image_weight[None, :, :, None]
    mixed = images * image_weight + images[::-1] * (1 - image_weight)
    return mixed, targets * target_weight + targets[::-1] * (1 - target_weight)


def _box(key: PRNGKeyArray, height: int, width: int, side: Float[Array, ""]) -> tuple[Array, Array]:
    """Returns the mask and area fraction of a random box of `side` times the image's sides, clipped at the border."""
    center_y, center_x = jax.random.uniform(key, (2,))
    spans = []
    for size, center in ((height, center_y), (width, center_x)):
        half = jnp.floor(size * side) // 2
        center = jnp.floor(center * size)
        pixels = jnp.arange(float(size))
        spans.append((pixels >= center - half) & (pixels < center + half))
    inside = (spans[0][:, None] & spans[1][None, :]).astype(jnp.float32)
    return inside, inside.mean()

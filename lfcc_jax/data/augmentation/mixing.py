"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) as in timm: each image with its partner at the other end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Mix(NamedTuple):
    """How batches are mixed.

    Attributes:
      mixup: alpha of the Beta distribution of mixup's shares; 0 is no mixup.
      cutmix: alpha of that of CutMix's; 0 is no CutMix.
      switch: probability of CutMix, where both are on.
      probability: of mixing a batch at all.
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
    """Returns images each mixed with the one at the other end of the batch, and their targets with the same shares.

    One share, and one box, for the whole batch.

    Args:
      key: of the random numbers.
      images: any range.
      targets: probabilities.
      how: which mixture.
    """
    done_key, which_key, share_key, cut_key, place_key = jax.random.split(key, 5)
    height, width = images.shape[1:3]
    both = how.mixup > 0 and how.cutmix > 0
    cuts = jax.random.bernoulli(which_key, how.switch) if both else jnp.asarray(how.cutmix > 0)

    share = jax.random.beta(share_key, how.mixup, how.mixup) if how.mixup else jnp.ones(())
    cut_share = jax.random.beta(cut_key, how.cutmix, how.cutmix) if how.cutmix else jnp.ones(())
    inside, of_box = _box(place_key, height, width, jnp.sqrt(1 - cut_share))
    # What stays of an image, pixel by pixel; and of its target, on the whole.
    stays = jnp.where(cuts, 1.0 - inside, share)
    kept = jnp.where(cuts, 1.0 - of_box, share)
    done = jax.random.bernoulli(done_key, how.probability)
    stays, kept = jnp.where(done, stays, 1.0), jnp.where(done, kept, 1.0)
    stays = stays[None, :, :, None]
    return images * stays + images[::-1] * (1 - stays), targets * kept + targets[::-1] * (1 - kept)


def _box(key: PRNGKeyArray, height: int, width: int, side: Float[Array, ""]) -> tuple[Array, Array]:
    """Returns where a box of `side` times the image's sides is, which the image's border cuts, and its share of it."""
    middle_y, middle_x = jax.random.uniform(key, (2,))
    spans = []
    for size, middle in ((height, middle_y), (width, middle_x)):
        half = jnp.floor(size * side) // 2
        middle = jnp.floor(middle * size)
        places = jnp.arange(size)
        spans.append((places >= middle - half) & (places < middle + half))
    inside = (spans[0][:, None] & spans[1][None, :]).astype(jnp.float32)
    return inside, inside.mean()

"""What happens to training images on the device, inside the training step.

Every random number of an image comes from the run's seed, the step, and the image's number in the data set alone, so
its pixels are the same wherever in the batch it stands, and on however many processes. On another number of devices
the order of sums may make a pixel in ten thousand differ by one level of 255.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from lfcc_jax.arguments import Between, Bound, Fraction, Length, Positive, checked_arguments
from lfcc_jax.data.augmentation.color_jitter import color_jitter as jitter_color
from lfcc_jax.data.augmentation.crops import flip as flip_image
from lfcc_jax.data.augmentation.crops import padded_crop, random_resized_crop
from lfcc_jax.data.augmentation.erasing import random_erasing
from lfcc_jax.data.augmentation.mixing import Mix, mix
from lfcc_jax.data.augmentation.policy import Policy, parse_policy, randaugment

__all__ = ["Augmentation", "create"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done, in this order; see `create`."""

    num_classes: int
    padding: int
    size: int
    scale: tuple[float, float]
    flip: bool
    policy: Policy | None
    color_jitter: float
    erasing: float
    mix: Mix
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, key: PRNGKeyArray, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Returns a batch as networks and losses see it.

        Args:
          key: of the run's seed and the step.
          batch: `image` uint8 `[B, H, W, C]`; `label` `[B]`; `index` `[B]`, each image's number in the data set.

        Returns:
          The batch with `image` float32 in [0, 1]. If images are mixed, `target` `[B, classes]` are the shares of the
          classes, and `label` is the class with the largest.
        """
        images_key, mix_key = jax.random.split(key)
        seen = {**batch, "image": self.each(images_key, batch["index"], batch["image"])}
        if self.mix.mixup or self.mix.cutmix:
            targets = jax.nn.one_hot(batch["label"], self.num_classes)
            images, targets = mix(mix_key, seen["image"], targets, self.mix)
            seen |= {"image": images, "target": targets, "label": targets.argmax(-1)}
        if self.erasing:
            seen["image"] = self.erase(images_key, batch["index"], seen["image"])
        return seen

    def each(
        self, key: PRNGKeyArray, index: Int[Array, " batch"], images: UInt8[Array, "batch height width channels"]
    ) -> Float[Array, "batch size size channels"]:
        """Returns the images, each changed by itself, in [0, 1]; nothing is erased yet."""
        fill = jnp.round(255 * self._by_channel(self.mean, images.shape[-1]))

        def one(index: Array, image: Array) -> Array:
            keys = self._keys(key, index)
            x = image.astype(jnp.float32)
            if self.padding:
                x = padded_crop(keys["padding"], x, self.padding)
            if self.size:
                x = random_resized_crop(keys["crop"], x, self.size, self.scale)
                x = jnp.clip(jnp.round(x), 0, 255)
            if self.flip:
                x = flip_image(keys["flip"], x)
            if self.policy:
                x = randaugment(keys["policy"], x, self.policy, fill)
            elif self.color_jitter:
                x = jitter_color(keys["jitter"], x, self.color_jitter, fill)
            return x / 255

        return jax.vmap(one)(index, images)

    def erase(
        self, key: PRNGKeyArray, index: Int[Array, " batch"], images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Returns the images, in some of them a box of noise."""
        mean, std = (self._by_channel(values, images.shape[-1]) for values in (self.mean, self.std))

        def one(index: Array, image: Array) -> Array:
            return random_erasing(self._keys(key, index)["erasing"], image, self.erasing, mean, std)

        return jax.vmap(one)(index, images)

    @staticmethod
    def _keys(key: PRNGKeyArray, index: Array) -> dict[str, Array]:
        names = ("padding", "crop", "flip", "policy", "jitter", "erasing")
        return dict(zip(names, jax.random.split(jax.random.fold_in(key, index), len(names)), strict=True))

    @staticmethod
    def _by_channel(values: tuple[float, ...], channels: int) -> Float[Array, " channels"]:
        return jnp.broadcast_to(jnp.asarray(values[:channels]), (channels,))


def _rises(scale: tuple[float, ...]) -> bool:
    return len(scale) == 2 and scale[0] <= scale[1] <= 1


ByChannel = Annotated[tuple[Annotated[float, Fraction], ...], Length(1, 3)]


def create(
    num_classes: Annotated[int, Positive],
    size: Annotated[int, Between(0, 8192)] = 0,
    padding: Annotated[int, Between(0, 8192)] = 0,
    scale: Annotated[tuple[Annotated[float, Positive], ...], Bound("(min, max) with 0 < min <= max <= 1", _rises)] = (
        0.08,
        1.0,
    ),
    flip: bool = False,
    randaugment: str = "",
    color_jitter: Annotated[float, Between(0, 10)] = 0.0,
    erasing: Annotated[float, Fraction] = 0.0,
    mixup: Annotated[float, Between(0, 1000)] = 0.0,
    cutmix: Annotated[float, Between(0, 1000)] = 0.0,
    switch: Annotated[float, Fraction] = 0.5,
    mix_probability: Annotated[float, Fraction] = 1.0,
    mean: ByChannel = (0.485, 0.456, 0.406),
    std: ByChannel = (0.229, 0.224, 0.225),
) -> Augmentation:
    """Returns the augmentation that a config block describes. By default nothing is done but scaling to [0, 1].

    Args:
      num_classes: of the data set.
      size: side of the random crops that are resized to it, in pixels; 0 crops nothing.
      padding: by how many pixels images are moved each way at most.
      scale: least and largest share of the image that a random crop keeps.
      flip: whether half of the images are mirrored.
      randaugment: a policy as in timm, `rand-m9-mstd0.5-inc1`; empty for none. See `policy.parse_policy`.
      color_jitter: strength of random brightness, contrast and saturation; not used where RandAugment is, as in timm.
      erasing: probability of erasing a box.
      mixup: alpha of mixup's shares; 0 is none.
      cutmix: alpha of CutMix's shares; 0 is none.
      switch: probability of CutMix, where both are on.
      mix_probability: of mixing a batch at all.
      mean: of the data by channel, or one number in a tuple: what RandAugment fills with, and that of erasing's noise.
      std: of the data by channel, or one number in a tuple: that of erasing's noise.

    Raises:
      UserError: if a value is out of bounds.

    References:
      The operations and their order (erasing comes after mixing) are those of timm's `create_transform`, `Mixup` and
      `PrefetchLoader`, but for two: RandAugment interpolates bilinearly always, and `Mixup` has one share and one box
      for the global batch, where timm draws them in each process.
    """
    checked_arguments(create, locals(), "config.data.augmentation")
    policy = parse_policy(randaugment) if randaugment else None
    mixture = Mix(mixup, cutmix, switch, mix_probability)
    return Augmentation(
        num_classes, padding, size, tuple(scale), flip, policy, color_jitter, erasing, mixture, tuple(mean), tuple(std)
    )

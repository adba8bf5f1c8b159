"""Augmentation of training images on the device, inside the training step.

The random numbers of an image depend only on the run's seed, the step, and the image's index in the data set, so its
pixels do not depend on its position in the batch or on the number of processes. With a different number of devices,
a different order of summation may change one pixel in ten thousand by one level of 255.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from lfcc_jax.arguments import Between, Bound, Fraction, Length, NonNegative, Positive, checked_arguments
from lfcc_jax.data.augmentation.color_jitter import color_jitter as jitter_color
from lfcc_jax.data.augmentation.crops import flip as flip_image
from lfcc_jax.data.augmentation.crops import padded_crop, random_resized_crop
from lfcc_jax.data.augmentation.erasing import random_erasing
from lfcc_jax.data.augmentation.mixing import Mix, mix
from lfcc_jax.data.augmentation.policy import Policy, parse_policy, randaugment

__all__ = ["Augmentation", "create"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The operations, in order; see `create`."""

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
    # Wraps functions of images; see `lfcc_jax.training.parts`.
    over_images: Callable[[Callable[..., Array]], Callable[..., Array]] = lambda function: function

    def __call__(self, key: PRNGKeyArray, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the augmented batch.

        Args:
          key: Key derived from the run's seed and the step.
          batch: `image` uint8 `[B, H, W, C]`; `label` `[B]`; `index` `[B]`, the index of each image in the data set.

        Returns:
          The batch with `image` float32 in [0, 1]. If images are mixed, `target` `[B, classes]` is the fraction of each
          class, and `label` the class with the largest fraction; without labels there is no `target`.
        """
        images_key, mix_key = jax.random.split(key)
        result = {**batch, "image": self.each(images_key, batch["index"], batch["image"])}
        if self.mix.mixup or self.mix.cutmix:
            targets = jax.nn.one_hot(batch["label"], self.num_classes)
            images, targets = mix(mix_key, result["image"], targets, self.mix)
            result["image"] = images
            if self.num_classes:
                result |= {"target": targets, "label": targets.argmax(-1)}
        if self.erasing:
            result["image"] = self.erase(images_key, batch["index"], result["image"])
        return result

    def each(
        self, key: PRNGKeyArray, index: Int[Array, " batch"], images: UInt8[Array, "batch height width channels"]
    ) -> Float[Array, "batch size size channels"]:
        """Applies the per-image augmentations, before mixing and erasing. Returns images in [0, 1]."""
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

        batched = _one_by_one_on_a_cpu(one) if self.policy else jax.vmap(one)
        return self.over_images(batched)(index, images)

    def erase(
        self, key: PRNGKeyArray, index: Int[Array, " batch"], images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Returns the images, some of them with a box replaced by noise."""
        mean, std = (self._by_channel(values, images.shape[-1]) for values in (self.mean, self.std))

        def one(index: Array, image: Array) -> Array:
            return random_erasing(self._keys(key, index)["erasing"], image, self.erasing, mean, std)

        return self.over_images(_one_by_one_on_a_cpu(one))(index, images)

    @staticmethod
    def _keys(key: PRNGKeyArray, index: Array) -> dict[str, Array]:
        names = ("padding", "crop", "flip", "policy", "jitter", "erasing")
        return dict(zip(names, jax.random.split(jax.random.fold_in(key, index), len(names)), strict=True))

    @staticmethod
    def _by_channel(values: tuple[float, ...], channels: int) -> Float[Array, " channels"]:
        return jnp.broadcast_to(jnp.asarray(values[:channels]), (channels,))


def _one_by_one_on_a_cpu(function: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a function of batches that applies `function` to each image.

    The only device, if it is a CPU, processes one image after the other, and skips what an image does not need. Others
    process all at once: a loop over a batch that is split would bring all images to each device.
    """
    at_once = jax.vmap(function)
    if jax.device_count() > 1:
        return at_once

    def one_by_one(*arrays: Array) -> Array:
        return jax.lax.map(lambda of_image: function(*of_image), arrays)

    return lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=at_once)


def _valid(scale: tuple[float, ...]) -> bool:
    return len(scale) == 2 and scale[0] <= scale[1] <= 1


ByChannel = Annotated[tuple[Annotated[float, Fraction], ...], Length(1, 3)]


def create(
    num_classes: Annotated[int, NonNegative],
    size: Annotated[int, Between(0, 8192)] = 0,
    padding: Annotated[int, Between(0, 8192)] = 0,
    scale: Annotated[tuple[Annotated[float, Positive], ...], Bound("(min, max) with 0 < min <= max <= 1", _valid)] = (
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
    """Returns the augmentation described by a config block. By default, images are only scaled to [0, 1].

    Args:
      num_classes: Number of classes; 0 without labels.
      size: Side of the resized random crops, in pixels; 0 disables them.
      padding: Maximum shift in pixels along each axis.
      scale: Smallest and largest fraction of the image's area in a random crop.
      flip: Whether to flip half of the images horizontally.
      randaugment: Policy in timm's notation, such as `rand-m9-mstd0.5-inc1`; empty for none. See `policy.parse_policy`.
      color_jitter: Strength of random brightness, contrast and saturation; ignored with RandAugment, as in timm.
      erasing: Probability of erasing a box.
      mixup: Alpha of mixup; 0 disables it.
      cutmix: Alpha of CutMix; 0 disables it.
      switch: Probability of CutMix instead of mixup if both are enabled.
      mix_probability: Probability of mixing a batch.
      mean: Mean of the data, one number or one per channel: RandAugment's fill value and the mean of erasing's noise.
      std: Standard deviation of the data, one number or one per channel: that of erasing's noise.

    Raises:
      UserError: if a value is out of bounds.

    References:
      The operations and their order (erasing after mixing) are those of timm's `create_transform`, `Mixup` and
      `PrefetchLoader`, with two differences: RandAugment always interpolates bilinearly, and mixing uses one ratio and
      one box for the global batch, whereas timm draws them in each process.
    """
    checked_arguments(create, locals(), "config.data.augmentation")
    policy = parse_policy(randaugment) if randaugment else None
    mixing = Mix(mixup, cutmix, switch, mix_probability)
    return Augmentation(
        num_classes, padding, size, tuple(scale), flip, policy, color_jitter, erasing, mixing, tuple(mean), tuple(std)
    )

"""MobileNetV2 (Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018), as in timm."""

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.arguments import Between
from lfcc_jax.models.convolution import conv
from lfcc_jax.models.layers import BatchNorm, uniform_init
from lfcc_jax.models.network import IMAGENET, Network, Output, Variant


class Group(NamedTuple):
    """Equal blocks: their expansion factor, output channels, count, and the stride of the first."""

    expansion: int
    width: int
    count: int
    stride: int


# Table 2 of the paper.
GROUPS = (
    Group(1, 16, 1, 1),
    Group(6, 24, 2, 2),
    Group(6, 32, 3, 2),
    Group(6, 64, 4, 2),
    Group(6, 96, 3, 1),
    Group(6, 160, 3, 2),
    Group(6, 320, 1, 1),
)
# Groups after which the benchmark's first three stages end; the fourth ends after the last convolution.
_STAGES = {1: "stage1", 2: "stage2", 4: "stage3"}


class Block(nn.Module):
    """Expansion, depthwise convolution, linear projection; with a shortcut where the shape does not change."""

    expansion: int
    width: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        inside = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            layer = conv(inside, 1, dtype=self.dtype, name="expand_conv")
            y = nn.relu6(BatchNorm(train, self.dtype, name="expand_norm")(y, layer))
        layer = conv(inside, 3, self.stride, depthwise=True, dtype=self.dtype, name="depthwise_conv")
        y = nn.relu6(BatchNorm(train, self.dtype, name="depthwise_norm")(y, layer))
        layer = conv(self.width, 1, dtype=self.dtype, name="project_conv")
        y = BatchNorm(train, self.dtype, name="project_norm")(y, layer)
        return x + y if x.shape == y.shape else y


class MobileNetV2(Network):
    """A MobileNetV2. BatchNorm uses the statistics of the global batch, as in `ResNet`.

    Attributes:
      multiplier: Factor of all widths, which are then rounded to multiples of 8.
      depth: Factor of the number of blocks of each group, which is then rounded up.
      small: Whether it is for small images (32 px): the first convolution and the second group have stride 1.
    """

    multiplier: Annotated[float, Between(0.01, 64)] = 1.0
    depth: Annotated[float, Between(0.01, 64)] = 1.0
    small: bool = False

    family: ClassVar = "cnn"

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        x = self.normalize(images)
        stride = 1 if self.small else 2
        layer = conv(scaled_width(32, self.multiplier), 3, stride, dtype=self.dtype, name="stem_conv")
        x = nn.relu6(BatchNorm(train, self.dtype, name="stem_norm")(x, layer))
        features = {}
        for g, group in enumerate(GROUPS):
            width = scaled_width(group.width, self.multiplier)
            stride = 1 if self.small and g == 1 else group.stride
            for b in range(math.ceil(group.count * self.depth)):
                name = f"group{g}_block{b}"
                x = block(group.expansion, width, stride if b == 0 else 1, self.dtype, name=name)(x, train)
            if g in _STAGES:
                features[_STAGES[g]] = x
        layer = conv(scaled_width(1280, max(1.0, self.multiplier)), 1, dtype=self.dtype, name="last_conv")
        features["stage4"] = x = nn.relu6(BatchNorm(train, self.dtype, name="last_norm")(x, layer))
        features["pooled"] = pooled = x.mean(axis=(1, 2))
        return Output(self.classify(pooled, train, uniform_init(self.num_classes)), features)


def scaled_width(width: int, multiplier: float) -> int:
    """Returns `width * multiplier` rounded to a multiple of 8, or up to the next one if that loses over 10 %."""
    product = width * multiplier
    rounded = max(8, int(product + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * product else rounded


_FIELDS = {"image_size": 224, "crop_fraction": 0.875} | IMAGENET

VARIANTS = {
    "mobilenetv2_050_32": Variant(MobileNetV2, {"image_size": 32, "small": True, "multiplier": 0.5}),
    "mobilenetv2_100_32": Variant(MobileNetV2, {"image_size": 32, "small": True}),
    "mobilenetv2_100": Variant(MobileNetV2, _FIELDS, in_timm=True, small={"multiplier": 0.25, "depth": 0.1}),
    "mobilenetv2_140": Variant(MobileNetV2, _FIELDS | {"multiplier": 1.4}, in_timm=True),
}

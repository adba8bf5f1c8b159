"""MobileNetV3 (Howard et al., Searching for MobileNetV3, 2019), the large one as in timm."""

import functools
from typing import Annotated, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from lfcc_jax.arguments import Between
from lfcc_jax.models.convolution import conv, he
from lfcc_jax.models.efficientnet import Block, Group, SqueezeExcite
from lfcc_jax.models.layers import BatchNorm, uniform_init
from lfcc_jax.models.mobilenet import scaled_width
from lfcc_jax.models.network import IMAGENET, Network, Output, Variant

# Table 1 of the paper.
GROUPS = (
    Group(3, 1, 16, (1.0,)),
    Group(3, 2, 24, (4.0, 3.0)),
    Group(5, 2, 40, (3.0, 3.0, 3.0)),
    Group(3, 2, 80, (6.0, 2.5, 2.3, 2.3)),
    Group(3, 1, 112, (6.0, 6.0)),
    Group(5, 2, 160, (6.0, 6.0, 6.0)),
)
# The groups with ReLU instead of hard swish, and those with squeeze-and-excite.
_RELU, SQUEEZED = (0, 1, 2), (2, 4, 5)
# Groups after which the first three stages end; the fourth ends after the last convolution before the pooling.
_STAGES = {1: "stage1", 2: "stage2", 4: "stage3"}


class MobileNetV3(Network):
    """A large MobileNetV3. BatchNorm uses the statistics of the global batch, as in `ResNet`.

    Attributes:
      multiplier: Factor of all widths, which are then rounded to multiples of 8.
    """

    multiplier: Annotated[float, Between(0.01, 64)] = 1.0

    family: ClassVar = "cnn"

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        x = self.normalize(images)
        layer = conv(scaled_width(16, self.multiplier), 3, 2, dtype=self.dtype, name="stem_conv")
        x = nn.hard_swish(BatchNorm(train, self.dtype, name="stem_norm")(x, layer))
        features = {}
        for g, group in enumerate(GROUPS):
            width = scaled_width(group.width, self.multiplier)
            activation = nn.relu if g in _RELU else nn.hard_swish
            for b, expansion in enumerate(group.expansions):
                inside = scaled_width(x.shape[-1], expansion)
                hidden = scaled_width(inside, 0.25)
                squeeze = functools.partial(SqueezeExcite, hidden, nn.relu, nn.hard_sigmoid, self.dtype)
                stride = group.stride if b == 0 else 1
                settings = inside, width, group.kernel, stride, activation, squeeze if g in SQUEEZED else None
                x = block(*settings, self.dtype, name=f"group{g}_block{b}")(x, train)
            if g in _STAGES:
                features[_STAGES[g]] = x
        layer = conv(scaled_width(960, self.multiplier), 1, dtype=self.dtype, name="last_conv")
        features["stage4"] = x = nn.hard_swish(BatchNorm(train, self.dtype, name="last_norm")(x, layer))
        # timm never scales this layer.
        x = nn.Dense(1280, kernel_init=he, dtype=self.dtype, name="pooled")(x.mean(axis=(1, 2)))
        features["pooled"] = pooled = nn.hard_swish(x)
        return Output(self.classify(pooled, train, uniform_init(self.num_classes)), features)


VARIANTS = {
    "mobilenetv3_large_100": Variant(
        MobileNetV3, {"image_size": 224, "crop_fraction": 0.875} | IMAGENET, in_timm=True, small={"multiplier": 0.25}
    ),
}

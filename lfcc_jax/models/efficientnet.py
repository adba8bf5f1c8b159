"""EfficientNet (Tan and Le, EfficientNet: Rethinking Model Scaling for CNNs, 2019), as in timm."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.arguments import Between
from lfcc_jax.models.convolution import conv, he
from lfcc_jax.models.layers import BatchNorm, uniform_init
from lfcc_jax.models.mobilenet import scaled_width
from lfcc_jax.models.network import IMAGENET, Network, Output, Variant


class Group(NamedTuple):
    """Blocks of one width: their kernel size, the stride of the first, and the expansion factor of each."""

    kernel: int
    stride: int
    width: int
    expansions: tuple[float, ...]


# Table 1 of the paper.
GROUPS = (
    Group(3, 1, 16, (1.0,)),
    Group(3, 2, 24, (6.0,) * 2),
    Group(5, 2, 40, (6.0,) * 2),
    Group(3, 2, 80, (6.0,) * 3),
    Group(5, 1, 112, (6.0,) * 3),
    Group(5, 2, 192, (6.0,) * 4),
    Group(3, 1, 320, (6.0,)),
)
# Groups after which the first three stages end, as in `MobileNetV2`; the fourth ends after the last convolution.
_STAGES = {1: "stage1", 2: "stage2", 4: "stage3"}


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that a small MLP computes from the means of all channels.

    Reference: Hu et al., Squeeze-and-Excitation Networks, 2018.
    """

    hidden: int
    activation: Callable[[Array], Array]
    gate: Callable[[Array], Array]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns maps of the shape of `x`."""
        y = nn.Dense(self.hidden, kernel_init=he, dtype=self.dtype, name="reduce")(x.mean((1, 2), keepdims=True))
        y = nn.Dense(x.shape[-1], kernel_init=he, dtype=self.dtype, name="expand")(self.activation(y))
        return x * self.gate(y)


class Block(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excite, projection; with a shortcut if the shape stays.

    Attributes:
      inside: Number of channels of the depthwise convolution; that of the input for no expansion.
      width: Number of output channels.
      kernel: Kernel size of the depthwise convolution.
      stride: Its stride.
      activation: Follows the first two BatchNorms.
      squeeze: Returns a `SqueezeExcite` of a given name; None for none.
      dtype: Dtype of the computation.
    """

    inside: int
    width: int
    kernel: int
    stride: int
    activation: Callable[[Array], Array]
    squeeze: Callable[..., SqueezeExcite] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        y = x
        if self.inside != x.shape[-1]:
            layer = conv(self.inside, 1, dtype=self.dtype, name="expand_conv")
            y = self.activation(BatchNorm(train, self.dtype, name="expand_norm")(y, layer))
        layer = conv(self.inside, self.kernel, self.stride, depthwise=True, dtype=self.dtype, name="depthwise_conv")
        y = self.activation(BatchNorm(train, self.dtype, name="depthwise_norm")(y, layer))
        if self.squeeze is not None:
            y = self.squeeze(name="squeeze_excite")(y)
        layer = conv(self.width, 1, dtype=self.dtype, name="project_conv")
        y = BatchNorm(train, self.dtype, name="project_norm")(y, layer)
        return x + y if x.shape == y.shape else y


class EfficientNet(Network):
    """An EfficientNet of the depth of B0. BatchNorm uses the statistics of the global batch, as in `ResNet`.

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
        layer = conv(scaled_width(32, self.multiplier), 3, 2, dtype=self.dtype, name="stem_conv")
        x = nn.silu(BatchNorm(train, self.dtype, name="stem_norm")(x, layer))
        features = {}
        for g, group in enumerate(GROUPS):
            width = scaled_width(group.width, self.multiplier)
            for b, expansion in enumerate(group.expansions):
                before = x.shape[-1]
                squeeze = functools.partial(SqueezeExcite, round(before / 4), nn.silu, nn.sigmoid, self.dtype)
                stride = group.stride if b == 0 else 1
                settings = scaled_width(before, expansion), width, group.kernel, stride, nn.silu, squeeze, self.dtype
                x = block(*settings, name=f"group{g}_block{b}")(x, train)
            if g in _STAGES:
                features[_STAGES[g]] = x
        layer = conv(scaled_width(1280, self.multiplier), 1, dtype=self.dtype, name="last_conv")
        features["stage4"] = x = nn.silu(BatchNorm(train, self.dtype, name="last_norm")(x, layer))
        features["pooled"] = pooled = x.mean(axis=(1, 2))
        return Output(self.classify(pooled, train, uniform_init(self.num_classes)), features)


VARIANTS = {
    "efficientnet_b0": Variant(
        EfficientNet, {"image_size": 224, "crop_fraction": 0.875} | IMAGENET, in_timm=True, small={"multiplier": 0.25}
    ),
}

"""Residual networks (He et al., Deep Residual Learning for Image Recognition, 2016), as in timm and torchvision."""

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.arguments import Between, Length
from lfcc_jax.errors import UserError
from lfcc_jax.models.convolution import StemConv, conv, max_pool
from lfcc_jax.models.layers import BatchNorm, uniform_init
from lfcc_jax.models.network import IMAGENET, Depth, Network, Output, Variant, Width


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. The last norm's scale starts at zero, and the block as its shortcut."""

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        norm = partial(BatchNorm, train, self.dtype)
        layer = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")
        y = nn.relu(norm(name="norm1")(x, layer))
        layer = conv(self.width, 3, dtype=self.dtype, name="conv2")
        y = norm(zero=True, name="norm2")(y, layer)
        if x.shape != y.shape:
            layer = conv(self.width, 1, self.stride, dtype=self.dtype, name="shortcut_conv")
            x = norm(name="shortcut_norm")(x, layer)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """A strided 3x3 convolution between two 1x1 convolutions, and a shortcut; `width` counts output channels."""

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        norm = partial(BatchNorm, train, self.dtype)
        layer = conv(self.width // 4, 1, dtype=self.dtype, name="conv1")
        y = nn.relu(norm(name="norm1")(x, layer))
        layer = conv(self.width // 4, 3, self.stride, dtype=self.dtype, name="conv2")
        y = nn.relu(norm(name="norm2")(y, layer))
        layer = conv(self.width, 1, dtype=self.dtype, name="conv3")
        y = norm(zero=True, name="norm3")(y, layer)
        if x.shape != y.shape:
            layer = conv(self.width, 1, self.stride, dtype=self.dtype, name="shortcut_conv")
            x = norm(name="shortcut_norm")(x, layer)
        return nn.relu(x + y)


_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(Network):
    """Four stages of residual blocks.

    Under `jit` on a sharded batch, BatchNorm uses the statistics of the global batch (PyTorch's DistributedDataParallel
    uses those of each device's part, by default).

    Attributes:
      widths: Number of channels of each of the four stages.
      blocks: Number of blocks of each stage.
      strides: Stride of the first block of each stage.
      block: Kind of block, `basic` or `bottleneck`.
      stem_width: Number of channels of the first convolution; that of the first stage if 0.
      small: Whether it is for small images (32 px): a 3x3 stem with stride 1, instead of a 7x7 convolution and pooling,
        both with stride 2.
    """

    widths: Annotated[tuple[Width, ...], Length(4)] = (64, 128, 256, 512)
    blocks: Annotated[tuple[Depth, ...], Length(4)] = (2, 2, 2, 2)
    strides: Annotated[tuple[Annotated[int, Between(1, 8)], ...], Length(4)] = (1, 2, 2, 2)
    block: Literal["basic", "bottleneck"] = "basic"
    stem_width: Annotated[int, Between(0, 16384)] = 0
    small: bool = False

    family: ClassVar = "cnn"

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        if self.block == "bottleneck" and any(width % 4 for width in self.widths):
            raise UserError(f"widths of bottleneck blocks must be multiples of 4, got {tuple(self.widths)}")
        block = nn.remat(_BLOCKS[self.block], static_argnums=(2,)) if self.remat else _BLOCKS[self.block]
        x = self.normalize(images)
        width = self.stem_width or self.widths[0]
        stem = partial(conv, width, 3) if self.small else partial(StemConv, width)
        layer = stem(dtype=self.dtype, name="stem_conv")
        x = nn.relu(BatchNorm(train, self.dtype, name="stem_norm")(x, layer))
        if not self.small:
            x = max_pool(x)
        features = {}
        for s, (width, count, stride) in enumerate(zip(self.widths, self.blocks, self.strides, strict=True), start=1):
            for b in range(count):
                x = block(width, stride if b == 0 else 1, self.dtype, name=f"stage{s}_block{b}")(x, train)
            features[f"stage{s}"] = x
        features["pooled"] = pooled = x.mean(axis=(1, 2))
        init = uniform_init(pooled.shape[-1])
        return Output(self.classify(pooled, train, init, init), features)


_LARGE = {"image_size": 224, "crop_fraction": 0.875, "interpolation": "bilinear"} | IMAGENET
_DEEP = {"widths": (256, 512, 1024, 2048), "block": "bottleneck", "stem_width": 64}
_ONE_EACH = {"blocks": (1, 1, 1, 1), "small": True}

VARIANTS = {
    "resnet_pico": Variant(ResNet, _ONE_EACH | {"widths": (8, 16, 32, 64)}),
    "resnet_nano": Variant(ResNet, _ONE_EACH | {"widths": (16, 32, 64, 128)}),
    "resnet_micro_32": Variant(ResNet, _ONE_EACH | {"image_size": 32, "widths": (32, 64, 128, 256)}),
    "resnet18_32": Variant(ResNet, {"image_size": 32, "small": True, "blocks": (2, 2, 2, 2)}),
    "resnet18": Variant(
        ResNet,
        _LARGE | {"blocks": (2, 2, 2, 2)},
        in_timm=True,
        small={"blocks": (1, 1, 1, 1), "widths": (8, 16, 32, 64)},
    ),
    "resnet34": Variant(ResNet, _LARGE | {"blocks": (3, 4, 6, 3)}, in_timm=True),
    "resnet50": Variant(
        ResNet,
        _LARGE | _DEEP | {"blocks": (3, 4, 6, 3)},
        in_timm=True,
        small={"blocks": (1, 1, 1, 1), "widths": (16, 32, 64, 128), "stem_width": 8},
    ),
    "resnet101": Variant(ResNet, _LARGE | _DEEP | {"blocks": (3, 4, 23, 3)}, in_timm=True),
}

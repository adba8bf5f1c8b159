"""Residual networks with basic blocks (He et al., Deep Residual Learning for Image Recognition, 2016)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.models.network import Network, Output

# torch's convolution: symmetric padding (XLA's SAME pads strided convolutions on one side) and He initialisation.
_he = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def _conv(width: int, size: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    padding = [(size // 2, size // 2)] * 2
    return nn.Conv(width, (size, size), stride, padding, use_bias=False, kernel_init=_he, dtype=dtype, name=name)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the second norm starts at zero so that the block starts as its shortcut."""

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        y = _conv(self.width, 3, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = _conv(self.width, 3, 1, self.dtype, "conv2")(y)
        y = norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = _conv(self.width, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(Network):
    """A ResNet for small images: 3x3 stem without pooling, four stages of basic blocks.

    Under `jit` on a sharded batch, BatchNorm's statistics are those of the global batch, on every device the same
    (PyTorch's DistributedDataParallel normalises each device's share by itself unless told otherwise).

    Attributes:
      widths: channels of the four stages.
      blocks: blocks in each stage.
      strides: of each stage's first block.
      dropout: of the pooled vector, before the classifier.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        x = self.normalise(images)
        x = _conv(self.widths[0], 3, 1, self.dtype, "stem_conv")(x)
        x = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="stem_norm")(x)
        x = nn.relu(x)
        features = {}
        for s, (width, count, stride) in enumerate(zip(self.widths, self.blocks, self.strides, strict=True), start=1):
            for b in range(count):
                name = f"stage{s}_block{b}"
                x = BasicBlock(width, stride if b == 0 else 1, self.dtype, name=name)(x, train)
            features[f"stage{s}"] = x
        features["pooled"] = pooled = x.mean(axis=(1, 2))
        pooled = nn.Dropout(self.dropout)(pooled, deterministic=not train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(pooled)
        return Output(logits.astype(jnp.float32), features)


VARIANTS = {
    "resnet_pico": (ResNet, {"widths": (8, 16, 32, 64)}),
    "resnet_nano": (ResNet, {"widths": (16, 32, 64, 128)}),
}

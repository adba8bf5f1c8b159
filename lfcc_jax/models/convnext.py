"""ConvNeXt (Liu et al., A ConvNet for the 2020s, 2022) and ConvNeXt V2 (Woo et al., 2023), as in timm."""

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.arguments import Length
from lfcc_jax.models.convolution import Conv, PatchConv
from lfcc_jax.models.layers import DropPath, LayerNorm, LayerScale, Mlp, kernel_init
from lfcc_jax.models.network import (
    IMAGENET,
    Depth,
    Dropout,
    InitialScale,
    Network,
    Output,
    Patch,
    Ratio,
    Variant,
    Width,
)
from lfcc_jax.models.stack import drop_path_rates, stack


class Block(nn.Module):
    """A 7x7 depthwise convolution, a LayerNorm, an MLP and a layer scale unless it is None, with a shortcut."""

    kernel_init: Any
    mlp_ratio: float = 4.0
    layer_scale: float | None = 1e-6
    dtype: Any = jnp.float32
    response_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool, drop_path: Array | None = None) -> Array:
        """Returns maps of the shape of `x`, `[B, H, W, C]`."""
        width = x.shape[-1]
        options = {"use_bias": True, "kernel_init": self.kernel_init, "dtype": self.dtype}
        y = Conv(width, 7, depthwise=True, name="depthwise_conv", **options)(x)
        y = LayerNorm(1e-6, self.dtype, name="norm")(y)
        hidden, init = int(width * self.mlp_ratio), self.kernel_init
        y = Mlp(hidden, init, dtype=self.dtype, response_norm=self.response_norm, name="mlp")(y, train)
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, self.dtype, name="scale")(y)
        return x + DropPath()(y, drop_path, train)


class ConvNeXt(Network):
    """A ConvNeXt, or with `response_norm` and without `layer_scale` a ConvNeXt V2.

    Attributes:
      widths: Number of channels of each of the four stages.
      depths: Number of blocks of each stage.
      patch: Kernel size and stride of the first convolution, in pixels; less than 4 for small images (32 px).
      mlp_ratio: Hidden width of the MLPs, as a multiple of the stage's.
      layer_scale: Initial value of the layer scales; None for none.
      response_norm: Whether the MLPs contain a `GlobalResponseNorm`.
      narrow: Whether linear layers are initialized at 1 / sqrt(inputs) instead of timm's 0.02.
      drop_path: Stochastic depth rate of the last block; it grows linearly from zero at the first.
    """

    widths: Annotated[tuple[Width, ...], Length(4)] = (96, 192, 384, 768)
    depths: Annotated[tuple[Depth, ...], Length(4)] = (3, 3, 9, 3)
    patch: Patch = 4
    mlp_ratio: Ratio = 4.0
    layer_scale: InitialScale | None = 1e-6
    response_norm: bool = False
    narrow: bool = False
    drop_path: Dropout = 0.0

    family: ClassVar = "cnn"
    free_fields: ClassVar = Network.free_fields | {"layer_scale", "narrow", "drop_path"}

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        rates = drop_path_rates(self.drop_path, sum(self.depths))
        init = kernel_init(self.narrow)
        block = Block(init, self.mlp_ratio, self.layer_scale, self.dtype, self.response_norm, parent=None)
        x = self.normalize(images)
        features, done = {}, 0
        for s, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True), start=1):
            if s > 1:
                x = LayerNorm(1e-6, self.dtype, name=f"stage{s}_down_norm")(x)
            name, size = ("stem_conv", self.patch) if s == 1 else (f"stage{s}_down_conv", 2)
            x = PatchConv(width, size, init, dtype=self.dtype, name=name)(x)
            if s == 1:
                x = LayerNorm(1e-6, self.dtype, name="stem_norm")(x)
            here = rates[done : done + depth]
            (x,) = stack(self, f"stage{s}_blocks", [block], here, x, train)
            features[f"stage{s}"], done = x, done + depth
        x = LayerNorm(1e-6, self.dtype, name="norm")(x.mean(axis=(1, 2)))
        features["pooled"] = x
        return Output(self.classify(x, train, init), features)


_FIELDS = {"image_size": 224, "crop_fraction": 0.875} | IMAGENET
# A layer scale of 1e-6 grows too slowly for the short runs of a small network.
_FOR_32 = {"image_size": 32, "patch": 2, "depths": (2, 2, 6, 2), "layer_scale": 0.1, "narrow": True}
_V2 = _FIELDS | {"depths": (2, 2, 6, 2), "layer_scale": None, "response_norm": True}

VARIANTS = {
    "convnext_pico_32": Variant(ConvNeXt, _FOR_32 | {"widths": (32, 64, 128, 256)}),
    "convnext_nano_32": Variant(ConvNeXt, _FOR_32 | {"widths": (64, 128, 256, 512)}),
    "convnext_tiny": Variant(
        ConvNeXt,
        _FIELDS | {"widths": (96, 192, 384, 768), "depths": (3, 3, 9, 3)},
        in_timm=True,
        small={"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)},
    ),
    "convnext_small": Variant(
        ConvNeXt, _FIELDS | {"widths": (96, 192, 384, 768), "depths": (3, 3, 27, 3)}, in_timm=True
    ),
    "convnext_base": Variant(
        ConvNeXt, _FIELDS | {"widths": (128, 256, 512, 1024), "depths": (3, 3, 27, 3)}, in_timm=True
    ),
    "convnextv2_atto": Variant(
        ConvNeXt,
        _V2 | {"widths": (40, 80, 160, 320)},
        in_timm=True,
        small={"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)},
    ),
    "convnextv2_femto": Variant(ConvNeXt, _V2 | {"widths": (48, 96, 192, 384)}, in_timm=True),
    "convnextv2_pico": Variant(ConvNeXt, _V2 | {"widths": (64, 128, 256, 512)}, in_timm=True),
    "convnextv2_nano": Variant(ConvNeXt, _V2 | {"widths": (80, 160, 320, 640), "depths": (2, 2, 8, 2)}, in_timm=True),
}

"""Swin Transformer (Liu et al., Hierarchical Vision Transformer using Shifted Windows, 2021), as in timm."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lfcc_jax.arguments import Between, Length
from lfcc_jax.errors import UserError
from lfcc_jax.models.attention import attend_projected, depending_on_tpu
from lfcc_jax.models.convolution import PatchConv
from lfcc_jax.models.layers import Dense, DropPath, LayerNorm, Mlp, kernel_init, patch_inits, trunc_normal
from lfcc_jax.models.network import (
    IMAGENET,
    Depth,
    Dropout,
    Heads,
    Network,
    Output,
    Patch,
    Ratio,
    Variant,
    Width,
)
from lfcc_jax.models.stack import drop_path_rates, stack

# Added to the attention logits of cells that share a window only by wrap-around, as in timm.
_MASKED_LOGIT = -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for each relative position.

    Attributes:
      heads: Number of heads; must divide the width.
      window: Height and width of a window, in cells.
      shift: Number of cells by which windows are moved down and right.
    """

    heads: int
    window: tuple[int, int]
    shift: tuple[int, int]
    kernel_init: Any
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool) -> Array:
        """Returns maps of the shape of `x`."""
        height, width, channels = x.shape[1:]
        (rows, columns), heads = self.window, self.heads
        x = jnp.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = jnp.pad(x, ((0, 0), (0, -height % rows), (0, -width % columns), (0, 0)))
        padded = x.shape[1:3]

        qkv = Dense(3 * channels, kernel_init=self.kernel_init, dtype=self.dtype, name="qkv")
        proj = Dense(channels, kernel_init=self.kernel_init, dtype=self.dtype, name="proj")
        table = self.param("position_bias", trunc_normal, ((2 * rows - 1) * (2 * columns - 1), heads))
        bias = jnp.moveaxis(table[relative_positions(self.window)], 2, 0)[None, None]
        mask = jnp.asarray(shift_mask(padded, self.window, self.shift)) if any(self.shift) else None
        attended = functools.partial(_attend_windows, heads, self.window)
        if train:
            by_rows = functools.partial(_by_rows, attended, rows)
            x = proj(depending_on_tpu(by_rows, attended, qkv(x), bias, mask))
        else:  # maps are cut where they have the fewest channels
            x = qkv(to_windows(x, self.window))
            x = from_windows(proj(attend_projected(x, heads, _masked(bias, mask))), self.window, padded)
        x = x[:, :height, :width]
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return jnp.roll(x, self.shift, (1, 2))


def _attend_windows(heads: int, window: tuple[int, int], qkv: Array, bias: Array, mask: Array | None) -> Array:
    """Returns the self-attention of the cells of each window, as maps; the bias is that of all images or of each."""
    x = attend_projected(to_windows(qkv, window), heads, _masked(bias, mask))
    return from_windows(x, window, qkv.shape[1:3])


def _masked(bias: Array, mask: Array | None) -> Array:
    return bias if mask is None else bias + jnp.where(mask, _MASKED_LOGIT, 0.0)[None, :, None]


def _by_rows(attended: Callable, window_height: int, qkv: Array, bias: Array, mask: Array | None) -> Array:
    """Computes `attended` for one row of windows at a time, and recomputes it for the gradient.

    The attention weights of one row stay on a TPU's chip; those of all windows would go to main memory and back.
    """
    batch, height, *rest = qkv.shape
    turns = height // window_height
    rows = jnp.moveaxis(qkv.reshape(batch, turns, window_height, *rest), 1, 0)
    masks = None if mask is None else mask.reshape(turns, -1, *mask.shape[1:])
    # Until the loop ends, each image has its own gradient of the bias: every turn would sum it over all devices.
    bias = jnp.broadcast_to(bias, (batch, *bias.shape[1:]))
    attended = jax.checkpoint(attended)
    done = jax.lax.map(lambda of_row: attended(of_row[0], bias, of_row[1]), (rows, masks))
    return jnp.moveaxis(done, 0, 1).reshape(batch, height, *done.shape[3:])


def to_windows(
    x: Float[Array, "batch height width channels"], window: tuple[int, int]
) -> Float[Array, "batch windows cells channels"]:
    """Cuts maps into windows, row by row; `window` must divide height and width."""
    batch, height, width, channels = x.shape
    rows, columns = window
    x = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, -1, rows * columns, channels)


def from_windows(
    x: Float[Array, "batch windows cells channels"], window: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "batch height width channels"]:
    """Puts windows back together to maps of `size`; the inverse of `to_windows`."""
    (rows, columns), (height, width) = window, size
    x = x.reshape(x.shape[0], height // rows, width // columns, rows, columns, x.shape[-1])
    return jnp.swapaxes(x, 2, 3).reshape(x.shape[0], height, width, x.shape[-1])


@functools.lru_cache
def relative_positions(window: tuple[int, int]) -> Int[np.ndarray, "cells cells"]:
    """Returns the row of the bias table for each pair of cells of a window."""
    rows, columns = window
    cells = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    offset = cells[:, None] - cells[None] + [rows - 1, columns - 1]
    return offset[..., 0] * (2 * columns - 1) + offset[..., 1]


@functools.lru_cache
def shift_mask(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Bool[np.ndarray, "windows cells cells"]:
    """Returns True for pairs of cells that share a window only because the shift wrapped around an edge of the map."""
    region = [np.digitize(np.arange(n), (n - w, n - s)) for n, w, s in zip(size, window, shift, strict=True)]
    region = 3 * region[0][:, None] + region[1][None]
    rows, columns = window
    region = (
        region.reshape(size[0] // rows, rows, size[1] // columns, columns).swapaxes(1, 2).reshape(-1, rows * columns)
    )
    return region[:, :, None] != region[:, None, :]


class Block(nn.Module):
    """Window attention and MLP, each with a LayerNorm before it and a shortcut."""

    heads: int
    window: tuple[int, int]
    shift: tuple[int, int]
    kernel_init: Any
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool, drop_path: Array | None = None) -> Array:
        """Returns maps of the shape of `x`, `[B, H, W, C]`."""
        y = LayerNorm(1e-5, self.dtype, name="norm1")(x)
        attention = WindowAttention(
            self.heads, self.window, self.shift, self.kernel_init, self.dropout, self.dtype, name="attn"
        )
        x = x + DropPath()(attention(y, train), drop_path, train)
        y = LayerNorm(1e-5, self.dtype, name="norm2")(x)
        y = Mlp(int(x.shape[-1] * self.mlp_ratio), self.kernel_init, self.dropout, self.dtype, name="mlp")(y, train)
        return x + DropPath()(y, drop_path, train)


class Swin(Network):
    """A Swin Transformer. A stage's feature is taken before the next stage downsamples it, and before the last norm.

    Attributes:
      patch: Side of a patch, in pixels; must divide the image.
      width: Number of channels of the first stage; each stage doubles it.
      depths: Number of blocks of each stage; even, because regular and shifted windows alternate.
      heads: Number of attention heads of each stage.
      window: Side of a window, in cells; a smaller map is one window.
      mlp_ratio: Hidden width of the MLPs, as a multiple of the stage's.
      narrow: Whether linear layers are initialized at 1 / sqrt(inputs) instead of timm's 0.02.
      drop_path: Stochastic depth rate of the last block; it grows linearly from zero at the first.
    """

    patch: Patch = 4
    width: Width = 96
    depths: Annotated[tuple[Depth, ...], Length(4)] = (2, 2, 6, 2)
    heads: Annotated[tuple[Heads, ...], Length(4)] = (3, 6, 12, 24)
    window: Annotated[int, Between(1, 256)] = 7
    mlp_ratio: Ratio = 4.0
    narrow: bool = False
    drop_path: Dropout = 0.0

    family: ClassVar = "transformer"
    free_fields: ClassVar = Network.free_fields | {"narrow", "drop_path"}

    @classmethod
    def decays(cls, name: str, leaf: Any) -> bool:
        """Returns whether a parameter has weight decay; see `Network.decays`. Relative position biases do not."""
        return name != "position_bias" and super().decays(name, leaf)

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            raise UserError(
                f"patch must divide the image size, got patch={self.patch} and images of {images.shape[1:3]}"
            )
        if any(depth % 2 for depth in self.depths):
            raise UserError(f"depths must be even because regular and shifted windows alternate, got {self.depths}")
        init = kernel_init(self.narrow)
        rates = drop_path_rates(self.drop_path, sum(self.depths))
        x = self.normalize(images)
        inits = patch_inits(self.narrow, self.patch**2 * self.image_channels)
        x = PatchConv(self.width, self.patch, *inits, dtype=self.dtype, name="patch_embed")(x)
        x = LayerNorm(1e-5, self.dtype, name="patch_norm")(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        features, done = {}, 0
        for s, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True), start=1):
            if s > 1:
                x = merge_patches(x)
                x = LayerNorm(1e-5, self.dtype, name=f"stage{s}_merge_norm")(x)
                width = self.width * 2 ** (s - 1)
                merge = Dense(width, use_bias=False, kernel_init=init, dtype=self.dtype, name=f"stage{s}_merge")
                x = merge(x)
            if x.shape[-1] % heads:
                raise UserError(f"heads must divide the width of stage {s}, {x.shape[-1]}, got {heads}")
            window = min(self.window, x.shape[1]), min(self.window, x.shape[2])
            shift = tuple(0 if n <= self.window else self.window // 2 for n in x.shape[1:3])
            settings = (init, self.mlp_ratio, self.dropout, self.dtype)
            pair = [Block(heads, window, moved, *settings, parent=None) for moved in ((0, 0), shift)]
            here = rates[done : done + depth]
            (x,) = stack(self, f"stage{s}_blocks", pair, here, x, train)
            features[f"stage{s}"], done = x, done + depth
        x = LayerNorm(1e-5, self.dtype, name="norm")(x)
        features["pooled"] = pooled = x.mean(axis=(1, 2))
        return Output(self.classify(pooled, train, init), features)


def merge_patches(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height/2 width/2 channels*4"]:
    """Concatenates the channels of each 2 x 2 cells, column by column; an odd edge is padded with zeros."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, (height + 1) // 2, (width + 1) // 2, 4 * channels)


_WINDOW7 = {"image_size": 224, "crop_fraction": 0.9} | IMAGENET
# Variants of the benchmark that timm does not have.
_TWO_EACH = {"depths": (2, 2, 2, 2), "heads": (2, 4, 8, 16), "drop_path": 0.1}
_SMALL = {"width": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4)}
_WINDOW4 = {"image_size": 32, "patch": 2, "window": 4, "depths": (2, 2, 2, 2), "narrow": True}

VARIANTS = {
    "swin_femto_32": Variant(Swin, _WINDOW4 | {"width": 24, "heads": (1, 2, 4, 8)}),
    "swin_pico_32": Variant(Swin, _WINDOW4 | {"width": 48, "heads": (2, 4, 8, 16)}),
    "swin_nano_32": Variant(Swin, _WINDOW4 | {"width": 64, "depths": (2, 2, 6, 2), "heads": (2, 4, 8, 16)}),
    "swin_tiny_patch4_window7_224": Variant(Swin, _WINDOW7 | {"drop_path": 0.1}, in_timm=True, small=_SMALL),
    "swin_small_patch4_window7_224": Variant(
        Swin, _WINDOW7 | {"depths": (2, 2, 18, 2), "drop_path": 0.1}, in_timm=True
    ),
    "swin_base_patch4_window7_224": Variant(
        Swin,
        _WINDOW7 | {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "drop_path": 0.1},
        in_timm=True,
    ),
    "swin_nano_patch4_window7_224": Variant(Swin, _WINDOW7 | _TWO_EACH | {"width": 64}, small=_SMALL),
    "swin_pico_patch4_window7_224": Variant(Swin, _WINDOW7 | _TWO_EACH | {"width": 48}, small=_SMALL),
}

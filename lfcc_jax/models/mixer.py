"""MLP-Mixer (Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, 2021)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError
from lfcc_jax.models.network import DropPath, Mlp, Network, Output, even_taps, tokens_to_map


class Block(nn.Module):
    """An MLP across tokens, then an MLP across channels, each behind a LayerNorm and beside a shortcut."""

    token_hidden: int
    channel_hidden: int
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Returns the tokens, of the same shape."""
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
        y = Mlp(self.token_hidden, self.dropout, self.dtype, name="mlp_tokens")(jnp.swapaxes(y, 1, 2), train)
        x = x + DropPath(self.drop_path)(jnp.swapaxes(y, 1, 2), train)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
        y = Mlp(self.channel_hidden, self.dropout, self.dtype, name="mlp_channels")(y, train)
        return x + DropPath(self.drop_path)(y, train)


class Mixer(Network):
    """An MLP-Mixer; the mean of the final tokens is classified.

    Attributes:
      patch: side of a patch, in pixels; it must divide the image.
      width: channels of a token.
      depth: number of blocks.
      token_ratio: hidden width of the MLP across tokens over `width`.
      channel_ratio: hidden width of the MLP across channels over `width`.
      taps: after which blocks the four stages end; evenly spaced if empty.
      dropout: in both MLPs, and of the pooled vector.
      drop_path: stochastic depth of the last block; it grows linearly from zero at the first.
    """

    patch: int = 4
    width: int = 192
    depth: int = 4
    token_ratio: float = 0.5
    channel_ratio: float = 4.0
    taps: tuple[int, ...] = ()
    dropout: float = 0.0
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            raise UserError(f"patches of {self.patch} pixels do not divide an image of {images.shape[1:3]} pixels")
        x = self.normalise(images)
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype, name="patch_embed")(x)
        x = x.reshape(x.shape[0], -1, self.width)

        hidden = int(self.width * self.token_ratio), int(self.width * self.channel_ratio)
        taps = self.taps or even_taps(self.depth)
        features = {}
        for b in range(self.depth):
            drop_path = self.drop_path * b / max(self.depth - 1, 1)
            x = Block(*hidden, self.dropout, drop_path, self.dtype, name=f"block{b}")(x, train)
            features |= {f"stage{s}": tokens_to_map(x) for s, tap in enumerate(taps, start=1) if tap == b + 1}
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        features["pooled"] = pooled = x.mean(axis=1)
        pooled = nn.Dropout(self.dropout)(pooled, deterministic=not train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(pooled)
        return Output(logits.astype(jnp.float32), features)


VARIANTS = {
    "mixer_pico": (Mixer, {"patch": 2, "width": 48, "depth": 4}),
    "mixer_nano": (Mixer, {"patch": 2, "width": 96, "depth": 4}),
}

"""Vision Transformers (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021), in timm's pre-norm form."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError
from lfcc_jax.models.network import DropPath, Mlp, Network, Output, even_taps, tokens_to_map


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Returns the attended tokens."""
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        x = jax.nn.dot_product_attention(query, key, value).reshape(batch, tokens, width)
        x = nn.Dense(width, dtype=self.dtype, name="proj")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a shortcut."""

    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Returns the tokens, of the same shape."""
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
        y = Attention(self.heads, self.dropout, self.dtype, name="attn")(y, train)
        x = x + DropPath(self.drop_path)(y, train)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
        y = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dropout, self.dtype, name="mlp")(y, train)
        return x + DropPath(self.drop_path)(y, train)


class ViT(Network):
    """A plain Vision Transformer with a class token and learned positions.

    Attributes:
      patch: side of a patch, in pixels; it must divide the image.
      width: channels of a token.
      depth: number of blocks.
      heads: of the attention; must divide `width`.
      mlp_ratio: hidden width of the MLP over `width`.
      taps: after which blocks the four stages end; evenly spaced if empty.
      dropout: in attention and MLP, and of the pooled vector.
      drop_path: stochastic depth of the last block; it grows linearly from zero at the first.
    """

    patch: int = 4
    width: int = 192
    depth: int = 4
    heads: int = 3
    mlp_ratio: float = 4.0
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
        token = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(self.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)

        taps = self.taps or even_taps(self.depth)
        features = {}
        for b in range(self.depth):
            drop_path = self.drop_path * b / max(self.depth - 1, 1)
            block = Block(self.heads, self.mlp_ratio, self.dropout, drop_path, self.dtype, name=f"block{b}")
            x = block(x, train)
            features |= {f"stage{s}": tokens_to_map(x[:, 1:]) for s, tap in enumerate(taps, start=1) if tap == b + 1}
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        features["pooled"] = pooled = x[:, 0]
        pooled = nn.Dropout(self.dropout)(pooled, deterministic=not train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(pooled)
        return Output(logits.astype(jnp.float32), features)


VARIANTS = {
    "vit_pico": (ViT, {"patch": 2, "width": 48, "depth": 4, "heads": 3}),
    "vit_nano": (ViT, {"patch": 2, "width": 96, "depth": 4, "heads": 3}),
}

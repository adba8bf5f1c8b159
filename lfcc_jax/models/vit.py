"""Vision Transformers (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021), in timm's pre-norm form.

DeiT, DINOv2 (Oquab et al., 2024), DINOv3 (Siméoni et al., 2025) and SigLIP 2 (Tschannen et al., 2025) are variants.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.arguments import Between
from lfcc_jax.errors import UserError
from lfcc_jax.models.attention import attend, attend_projected, depending_on_tpu
from lfcc_jax.models.layers import (
    Dense,
    DropPath,
    LayerNorm,
    LayerScale,
    Mlp,
    kernel_init,
    patch_inits,
    row_major,
    trunc_normal,
)
from lfcc_jax.models.network import IMAGENET, Heads, InitialScale, Ratio, Variant
from lfcc_jax.models.rotary import rotate
from lfcc_jax.models.tokens import SMALL, TAPS_OF_12, TokenNetwork

# The initializer of the classifier of timm's rotary networks.
_tiny_normal = nn.initializers.truncated_normal(2e-5, lower=-100.0, upper=100.0)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value.

    `rotate` changes queries and keys, `[batch, tokens, heads, channels]`, if it is given.
    """

    heads: int
    kernel_init: Any
    dropout: float = 0.0
    dtype: Any = jnp.float32
    qkv_bias: bool = True
    rotate: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Returns the attended tokens."""
        width = x.shape[-1]
        dense = functools.partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        qkv = dense(3 * width, use_bias=self.qkv_bias, name="qkv")(x)
        attended = functools.partial(attend_projected, heads=self.heads, rotate=self.rotate)
        # The backward pass recomputes the attention weights, so they need not go to a TPU's main memory and back.
        x = depending_on_tpu(jax.checkpoint(attended), attended, qkv) if train else attended(qkv)
        x = dense(width, name="proj")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; an MLP with a LayerNorm and a shortcut follows.

    Reference: Zhai et al., Scaling Vision Transformers, 2022 (multihead attention pooling).
    """

    heads: int
    hidden: int
    kernel_init: Any
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """Returns the pooled tokens."""
        batch, tokens, width = x.shape
        dense = functools.partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        latent = self.param("latent", nn.initializers.truncated_normal(width**-0.5), (1, 1, width))
        query = jnp.broadcast_to(dense(width, name="q")(latent), (batch, 1, width))
        query = query.reshape(batch, 1, self.heads, width // self.heads)
        key_value = dense(2 * width, name="kv")(x)
        key, value = jnp.moveaxis(key_value.reshape(batch, tokens, 2, self.heads, width // self.heads), 2, 0)
        x = attend(query, key, value).reshape(batch, width)
        x = dense(width, name="proj")(x)
        y = LayerNorm(self.epsilon, self.dtype, name="norm")(x)
        return x + Mlp(self.hidden, self.kernel_init, dtype=self.dtype, name="mlp")(y, False)


class Block(nn.Module):
    """Attention and MLP, each with a LayerNorm before it, a layer scale unless it is None, and a shortcut."""

    heads: int
    hidden: int
    kernel_init: Any
    dropout: float = 0.0
    dtype: Any = jnp.float32
    epsilon: float = 1e-6
    layer_scale: float | None = None
    qkv_bias: bool = True
    rotate: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], train: bool, drop_path: Array | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Returns the tokens, of the same shape."""

        def scaled(y: Array, name: str) -> Array:
            return y if self.layer_scale is None else LayerScale(self.layer_scale, self.dtype, name=name)(y)

        y = LayerNorm(self.epsilon, self.dtype, name="norm1")(x)
        settings = self.heads, self.kernel_init, self.dropout, self.dtype, self.qkv_bias, self.rotate
        y = scaled(Attention(*settings, name="attn")(y, train), "scale1")
        x = x + DropPath()(y, drop_path, train)
        y = LayerNorm(self.epsilon, self.dtype, name="norm2")(x)
        y = scaled(Mlp(self.hidden, self.kernel_init, self.dropout, self.dtype, name="mlp")(y, train), "scale2")
        return x + DropPath()(y, drop_path, train)


class ViT(TokenNetwork):
    """A Vision Transformer.

    Attributes:
      heads: Number of attention heads; must divide `width`.
      mlp_ratio: Hidden width of the MLP, as a multiple of `width`.
      narrow: Whether linear layers are initialized at 1 / sqrt(inputs) instead of timm's 0.02.
      layer_scale: Initial value of both layer scales of each block; None for none.
      registers: Number of register tokens (Darcet et al., Vision Transformers Need Registers, 2024).
      positions: `all` for a learned position embedding of every token, `patches` for learned ones of the patches only,
        `rotary` for rotated queries and keys of the patches, which fit any image size.
      pooling: What the classifier reads: the class `token`, the `mean` of the patches, or the result of an `attention`
        pool, with which there is no class token.
      qkv_bias: Whether query, key and value have biases.
      epsilon: Added to the variance in each LayerNorm.
    """

    heads: Heads = 3
    mlp_ratio: Ratio = 4.0
    narrow: bool = False
    layer_scale: InitialScale | None = None
    registers: Annotated[int, Between(0, 1024)] = 0
    positions: Literal["all", "patches", "rotary"] = "all"
    pooling: Literal["token", "mean", "attention"] = "token"
    qkv_bias: bool = True
    epsilon: Annotated[float, Between(1e-12, 1)] = 1e-6

    family: ClassVar = "transformer"
    free_fields: ClassVar = TokenNetwork.free_fields | {"narrow"}

    @classmethod
    def decays(cls, name: str, leaf: Any) -> bool:
        """Returns whether a parameter has weight decay; see `Network.decays`. Tokens and positions do not."""
        return name not in ("class_token", "register_tokens", "pos_embed") and super().decays(name, leaf)

    @property
    def prefix(self) -> int:
        """Number of tokens before those of the patches."""
        return (self.pooling != "attention") + self.registers

    @property
    def prefix_positions(self) -> int:
        """Number of position embeddings before those of the patches."""
        return self.prefix if self.positions == "all" else 0

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def patch_inits(self) -> tuple[Any, Any]:
        """Initializers of the patch embedding's kernel and bias."""
        return patch_inits(self.narrow, self.patch**2 * self.image_channels)

    @property
    def head_init(self) -> Any:
        """Initializer of the classifier."""
        return _tiny_normal if self.positions == "rotary" else kernel_init(self.narrow)

    def embed(self, x: Float[Array, "batch patches width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Prepends class token and registers, and adds the position embeddings."""
        counts = {"class_token": int(self.pooling != "attention"), "register_tokens": self.registers}
        init = trunc_normal if self.positions == "rotary" else nn.initializers.normal(1e-6)
        tokens = [self.param(name, init, (1, n, self.width)).astype(self.dtype) for name, n in counts.items() if n]
        x = jnp.concatenate([*(jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in tokens), x], axis=1)
        if self.positions != "rotary":
            without = self.prefix - self.prefix_positions
            positions = self.param("pos_embed", trunc_normal, (1, x.shape[1] - without, self.width))
            x = x + jnp.pad(positions.astype(self.dtype), ((0, 0), (without, 0), (0, 0)))
            x = row_major(x) if train else x
        return nn.Dropout(self.dropout)(x, deterministic=not train)

    def block(self, grid: tuple[int, int]) -> Block:
        """Returns one block for a grid of patches, detached."""
        if self.width % self.heads:
            raise UserError(f"heads must divide width={self.width}, got {self.heads}")
        rotary = self.positions == "rotary"
        if rotary and self.width % (4 * self.heads):
            raise UserError(
                f"width / heads must be a multiple of 4 with rotary positions, got {self.width} / {self.heads}"
            )
        return Block(
            self.heads,
            self.hidden,
            kernel_init(self.narrow),
            self.dropout,
            self.dtype,
            self.epsilon,
            self.layer_scale,
            self.qkv_bias,
            functools.partial(rotate, grid=grid, prefix=self.prefix) if rotary else None,
            parent=None,
        )

    def norm(self) -> LayerNorm:
        """Returns the last normalization."""
        return LayerNorm(self.epsilon, self.dtype, name="norm")

    def pool(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """Returns the class token, the mean of the patches, or what the attention pool makes of them; see `pooling`."""
        if self.pooling == "token":
            return x[:, 0]
        if self.pooling == "mean":
            return x[:, self.prefix :].mean(axis=1)
        init = kernel_init(self.narrow)
        return AttentionPool(self.heads, self.hidden, init, self.epsilon, self.dtype, name="attn_pool")(x)


_TINY = {"width": 192, "depth": 12, "heads": 3}
_SMALL_WIDTH = {"width": 384, "depth": 12, "heads": 6}
_BASE = {"width": 768, "depth": 12, "heads": 12}
_PATCH16 = {"image_size": 224, "patch": 16, "taps": TAPS_OF_12, "crop_fraction": 0.9}
_LARGE = {"width": 1024, "depth": 24, "heads": 16, "taps": (4, 8, 20, 24)}
_PATCH4 = {"image_size": 32, "patch": 4, "narrow": True}
_PRETRAINED = {"taps": TAPS_OF_12, "layer_scale": 1e-5} | IMAGENET
_DINO2 = {"image_size": 518, "patch": 14} | _PRETRAINED
_REGISTERS = {"registers": 4, "positions": "patches"}
# timm pools the mean of the patches; the authors take the class token, `pooling="token"`.
_DINO3 = _PRETRAINED | {
    "image_size": 256,
    "patch": 16,
    "registers": 4,
    "positions": "rotary",
    "pooling": "mean",
    "qkv_bias": False,
    "epsilon": 1e-5,
}

VARIANTS = {
    "vit_pico": Variant(ViT, {"patch": 2, "width": 48, "depth": 4, "heads": 3, "narrow": True}),
    "vit_nano": Variant(ViT, {"patch": 2, "width": 96, "depth": 4, "heads": 3, "narrow": True}),
    "vit_nano_32": Variant(ViT, _PATCH4 | {"width": 96, "depth": 8, "heads": 3}),
    "vit_tiny_32": Variant(ViT, _PATCH4 | _TINY | {"taps": TAPS_OF_12}),
    "vit_small_32": Variant(ViT, _PATCH4 | {"width": 384, "depth": 8, "heads": 6}),
    "vit_tiny_patch16_224": Variant(ViT, _PATCH16 | _TINY, in_timm=True),
    "vit_small_patch16_224": Variant(ViT, _PATCH16 | _SMALL_WIDTH, in_timm=True, small=SMALL | {"heads": 3}),
    "vit_base_patch16_224": Variant(ViT, _PATCH16 | _BASE, in_timm=True),
    "deit_tiny_patch16_224": Variant(ViT, _PATCH16 | _TINY | IMAGENET, in_timm=True, small=SMALL | {"heads": 3}),
    "deit_small_patch16_224": Variant(ViT, _PATCH16 | _SMALL_WIDTH | IMAGENET, in_timm=True),
    "deit_base_patch16_224": Variant(ViT, _PATCH16 | _BASE | IMAGENET, in_timm=True),
    "vit_small_patch14_dinov2": Variant(
        ViT, _DINO2 | _SMALL_WIDTH, in_timm=True, small=SMALL | {"heads": 3, "patch": 4}
    ),
    "vit_base_patch14_dinov2": Variant(ViT, _DINO2 | _BASE, in_timm=True),
    "vit_large_patch14_dinov2": Variant(ViT, _DINO2 | _LARGE, in_timm=True),
    "vit_small_patch14_reg4_dinov2": Variant(
        ViT, _DINO2 | _REGISTERS | _SMALL_WIDTH, in_timm=True, small=SMALL | {"heads": 3, "patch": 4}
    ),
    "vit_base_patch14_reg4_dinov2": Variant(ViT, _DINO2 | _REGISTERS | _BASE, in_timm=True),
    "vit_large_patch14_reg4_dinov2": Variant(ViT, _DINO2 | _REGISTERS | _LARGE, in_timm=True),
    "vit_small_patch16_dinov3": Variant(ViT, _DINO3 | _SMALL_WIDTH, in_timm=True, small=SMALL | {"heads": 3}),
    "vit_base_patch16_dinov3": Variant(ViT, _DINO3 | _BASE, in_timm=True),
    "vit_base_patch16_siglip_224": Variant(
        ViT, _PATCH16 | _BASE | {"pooling": "attention"}, in_timm=True, small=SMALL | {"heads": 3}
    ),
}

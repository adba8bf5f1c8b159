"""Vision Transformers (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021), in timm's pre-norm form."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.errors import UserError
from lfcc_jax.models.layers import DropPath, LayerNorm, Mlp, kernel_init, patch_inits, trunc_normal
from lfcc_jax.models.network import IMAGENET, Heads, Ratio, Variant
from lfcc_jax.models.tokens import SMALL, TAPS_OF_12, TokenNetwork


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    heads: int
    kernel_init: Any
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Returns the attended tokens."""
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width, kernel_init=self.kernel_init, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        x = jax.nn.dot_product_attention(query, key, value).reshape(batch, tokens, width)
        x = nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="proj")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class Block(nn.Module):
    """Attention and MLP, each with a LayerNorm before it and a shortcut."""

    heads: int
    hidden: int
    kernel_init: Any
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], train: bool, drop_path: Array | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Returns the tokens, of the same shape."""
        y = LayerNorm(1e-6, self.dtype, name="norm1")(x)
        y = Attention(self.heads, self.kernel_init, self.dropout, self.dtype, name="attn")(y, train)
        x = x + DropPath()(y, drop_path, train)
        y = LayerNorm(1e-6, self.dtype, name="norm2")(x)
        y = Mlp(self.hidden, self.kernel_init, self.dropout, self.dtype, name="mlp")(y, train)
        return x + DropPath()(y, drop_path, train)


class ViT(TokenNetwork):
    """A plain Vision Transformer. The class token is classified, and position embeddings are learned.

    Attributes:
      heads: Number of attention heads; must divide `width`.
      mlp_ratio: Hidden width of the MLP, as a multiple of `width`.
      narrow: Whether linear layers are initialized at 1 / sqrt(inputs) instead of timm's 0.02.
    """

    heads: Heads = 3
    mlp_ratio: Ratio = 4.0
    narrow: bool = False

    family: ClassVar = "transformer"
    prefix: ClassVar[int] = 1
    free_fields: ClassVar = TokenNetwork.free_fields | {"narrow"}

    @classmethod
    def decays(cls, name: str, leaf: Any) -> bool:
        """Returns whether a parameter has weight decay; see `Network.decays`. Class token and positions do not."""
        return name not in ("class_token", "pos_embed") and super().decays(name, leaf)

    @property
    def patch_inits(self) -> tuple[Any, Any]:
        """Initializers of the patch embedding's kernel and bias."""
        return patch_inits(self.narrow, self.patch**2 * self.image_channels)

    @property
    def head_init(self) -> Any:
        """Initializer of the classifier."""
        return kernel_init(self.narrow)

    def embed(self, x: Float[Array, "batch patches width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Prepends the class token and adds the position embeddings."""
        token = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("pos_embed", trunc_normal, (1, *x.shape[1:])).astype(self.dtype)
        return nn.Dropout(self.dropout)(x, deterministic=not train)

    def block(self) -> Block:
        """Returns one block, detached."""
        if self.width % self.heads:
            raise UserError(f"heads must divide width={self.width}, got {self.heads}")
        hidden = int(self.width * self.mlp_ratio)
        return Block(self.heads, hidden, kernel_init(self.narrow), self.dropout, self.dtype, parent=None)

    def pool(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """Returns the class token."""
        return x[:, 0]


_TINY = {"width": 192, "depth": 12, "heads": 3}
_SMALL_WIDTH = {"width": 384, "depth": 12, "heads": 6}
_BASE = {"width": 768, "depth": 12, "heads": 12}
_PATCH16 = {"image_size": 224, "patch": 16, "taps": TAPS_OF_12, "crop_fraction": 0.9}
_PATCH4 = {"image_size": 32, "patch": 4, "narrow": True}

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
}

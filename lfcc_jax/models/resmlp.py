"""ResMLP (Touvron et al., ResMLP: Feedforward networks for image classification with data-efficient training, 2021)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.models.layers import Dense, DropPath, LayerScale, Mlp, as_last
from lfcc_jax.models.network import IMAGENET, InitialScale, Ratio, Variant
from lfcc_jax.models.tokens import SMALL, TAPS_OF_12, TokenNetwork

_xavier = nn.initializers.xavier_uniform()


class Affine(nn.Module):
    """A scale and an offset for each channel: a norm without statistics."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Returns `alpha * x + beta`."""
        alpha = self.param("alpha", nn.initializers.ones, (x.shape[-1],))
        beta = self.param("beta", nn.initializers.zeros, (x.shape[-1],))
        return x * as_last(alpha, x).astype(self.dtype) + as_last(beta, x).astype(self.dtype)


class Block(nn.Module):
    """A linear layer across tokens, then an MLP across channels, each between an affine map and a layer scale."""

    hidden: int
    layer_scale: float
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], train: bool, drop_path: Array | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Returns the tokens, of the same shape."""
        y = jnp.swapaxes(Affine(self.dtype, name="norm1")(x), 1, 2)
        y = Dense(y.shape[-1], kernel_init=_xavier, dtype=self.dtype, name="linear_tokens")(y)
        y = LayerScale(self.layer_scale, self.dtype, name="scale1")(jnp.swapaxes(y, 1, 2))
        x = x + DropPath()(y, drop_path, train)
        y = Affine(self.dtype, name="norm2")(x)
        y = Mlp(self.hidden, _xavier, self.dropout, self.dtype, name="mlp_channels")(y, train)
        y = LayerScale(self.layer_scale, self.dtype, name="scale2")(y)
        return x + DropPath()(y, drop_path, train)


class ResMLP(TokenNetwork):
    """A ResMLP; the mean of the final tokens is classified.

    Attributes:
      mlp_ratio: Hidden width of the MLP, as a multiple of `width`.
      layer_scale: Initial value of both layer scales of each block.
    """

    mlp_ratio: Ratio = 4.0
    layer_scale: InitialScale = 1e-4

    family: ClassVar = "mlp"
    free_fields: ClassVar = TokenNetwork.free_fields | {"layer_scale"}

    @classmethod
    def decays(cls, name: str, leaf: Any) -> bool:
        """Returns whether a parameter has weight decay; see `Network.decays`.

        Affine maps do, although they are vectors: timm stores them as [1, 1, channels], so all its recipes decay them.
        """
        return name in ("alpha", "beta") or super().decays(name, leaf)

    def block(self, grid: tuple[int, int]) -> Block:
        """Returns one block for a grid of patches, detached."""
        return Block(int(self.width * self.mlp_ratio), self.layer_scale, self.dropout, self.dtype, parent=None)

    def norm(self) -> Affine:
        """Returns the last affine map."""
        return Affine(self.dtype, name="norm")


_PATCH16 = {"image_size": 224, "patch": 16, "crop_fraction": 0.875} | IMAGENET
_PATCH4 = {"image_size": 32, "patch": 4}

VARIANTS = {
    "resmlp_nano_32": Variant(ResMLP, _PATCH4 | {"width": 128, "depth": 8, "layer_scale": 0.1}),
    "resmlp_12_32": Variant(ResMLP, _PATCH4 | {"width": 384, "depth": 12, "taps": TAPS_OF_12}),
    "resmlp_12_224": Variant(
        ResMLP, _PATCH16 | {"width": 384, "depth": 12, "taps": TAPS_OF_12}, in_timm=True, small=SMALL
    ),
    "resmlp_24_224": Variant(
        ResMLP, _PATCH16 | {"width": 384, "depth": 24, "taps": (4, 8, 20, 24), "layer_scale": 1e-5}, in_timm=True
    ),
}

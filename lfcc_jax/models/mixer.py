"""MLP-Mixer (Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, 2021)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.models.layers import DropPath, LayerNorm, Mlp
from lfcc_jax.models.network import Ratio, Variant
from lfcc_jax.models.tokens import SMALL, TAPS_OF_12, TokenNetwork

# timm draws the biases of these layers from a normal distribution with std 1e-6; here they start at zero.
_xavier = nn.initializers.xavier_uniform()


class Block(nn.Module):
    """An MLP across tokens, then an MLP across channels, each with a LayerNorm before it and a shortcut."""

    token_hidden: int
    channel_hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], train: bool, drop_path: Array | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Returns the tokens, of the same shape."""
        y = LayerNorm(1e-6, self.dtype, name="norm1")(x)
        mlp = Mlp(self.token_hidden, _xavier, self.dropout, self.dtype, name="mlp_tokens")
        y = jnp.swapaxes(mlp(jnp.swapaxes(y, 1, 2), train), 1, 2)
        x = x + DropPath()(y, drop_path, train)
        y = LayerNorm(1e-6, self.dtype, name="norm2")(x)
        y = Mlp(self.channel_hidden, _xavier, self.dropout, self.dtype, name="mlp_channels")(y, train)
        return x + DropPath()(y, drop_path, train)


class Mixer(TokenNetwork):
    """An MLP-Mixer; the mean of the final tokens is classified.

    Attributes:
      token_ratio: Hidden width of the MLP across tokens, as a multiple of `width`.
      channel_ratio: Hidden width of the MLP across channels, as a multiple of `width`.
    """

    token_ratio: Ratio = 0.5
    channel_ratio: Ratio = 4.0

    family: ClassVar = "mlp"

    def block(self, grid: tuple[int, int]) -> Block:
        """Returns one block for a grid of patches, detached."""
        hidden = int(self.width * self.token_ratio), int(self.width * self.channel_ratio)
        return Block(*hidden, self.dropout, self.dtype, parent=None)


_PATCH16 = {"image_size": 224, "patch": 16, "crop_fraction": 0.875}
_PATCH4 = {"image_size": 32, "patch": 4}

VARIANTS = {
    "mixer_pico": Variant(Mixer, {"patch": 2, "width": 48, "depth": 4}),
    "mixer_nano": Variant(Mixer, {"patch": 2, "width": 96, "depth": 4}),
    "mixer_nano_32": Variant(Mixer, _PATCH4 | {"width": 128, "depth": 8}),
    "mixer_small_32": Variant(Mixer, _PATCH4 | {"width": 384, "depth": 8}),
    "mixer_s16_224": Variant(Mixer, _PATCH16 | {"width": 512, "depth": 8}, in_timm=True),
    "mixer_b16_224": Variant(
        Mixer, _PATCH16 | {"width": 768, "depth": 12, "taps": TAPS_OF_12}, in_timm=True, small=SMALL
    ),
}

"""Base class of networks of patch tokens. ViT, MLP-Mixer and ResMLP differ in their blocks and in the pooling."""

from typing import Annotated, Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from lfcc_jax.arguments import Length
from lfcc_jax.errors import UserError
from lfcc_jax.models.convolution import PatchConv
from lfcc_jax.models.layers import LayerNorm
from lfcc_jax.models.network import Depth, Dropout, Network, Output, Patch, Width
from lfcc_jax.models.stack import drop_path_rates, stack

# Blocks after which the benchmark's stages end, in networks of twelve blocks.
TAPS_OF_12 = (2, 4, 10, 12)
# Fields that shrink a network of tokens for smoke runs.
SMALL = {"width": 24, "depth": 4, "taps": (1, 2, 3, 4)}


class TokenNetwork(Network):
    """Patches become tokens, `depth` equal blocks transform them, and their pooled vector is classified.

    Attributes:
      patch: Side of a patch, in pixels; must divide the image.
      width: Number of channels of a token.
      depth: Number of blocks.
      taps: Blocks, counted from one, after which the four stages end; evenly spaced if empty.
      drop_path: Stochastic depth rate of the last block; it grows linearly from zero at the first.
      prefix: Number of tokens before those of the patches.
    """

    patch: Patch = 4
    width: Width = 192
    depth: Depth = 4
    taps: Annotated[tuple[Depth, ...], Length(0, 4)] = ()
    drop_path: Dropout = 0.0

    prefix: ClassVar[int] = 0
    free_fields: ClassVar = Network.free_fields | {"drop_path"}

    @property
    def patch_inits(self) -> tuple[Any, Any]:
        """Initializers of the patch embedding's kernel and bias."""
        return nn.initializers.lecun_normal(), nn.initializers.zeros

    @property
    def head_init(self) -> Any:
        """Initializer of the classifier: zero, as in timm's MLP networks."""
        return nn.initializers.zeros

    def embed(self, x: Float[Array, "batch patches width"], train: bool) -> Float[Array, "batch tokens width"]:
        """Returns the input of the first block: the tokens of the patches, here unchanged."""
        return x

    def block(self, grid: tuple[int, int]) -> nn.Module:
        """Returns one block for a grid of patches, detached; see `stack`."""
        raise NotImplementedError

    def norm(self) -> nn.Module:
        """Returns the last normalization."""
        return LayerNorm(1e-6, self.dtype, name="norm")

    def pool(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """Returns the input of the classifier: the mean of the tokens."""
        return x.mean(axis=1)

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool = False) -> Output:
        """Returns logits and features; see `Output`."""
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            raise UserError(
                f"patch must divide the image size, got patch={self.patch} and images of {images.shape[1:3]}"
            )
        taps = self.taps or even_taps(self.depth)
        if len(taps) != 4 or list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] != self.depth:
            raise UserError(f"taps must be four increasing block counts that end at depth={self.depth}, got {taps}")
        x = self.normalize(images)
        x = PatchConv(self.width, self.patch, *self.patch_inits, dtype=self.dtype, name="patch_embed")(x)
        grid = x.shape[1:3]
        x = self.embed(x.reshape(x.shape[0], -1, self.width), train)
        rates = drop_path_rates(self.drop_path, self.depth)
        stages = stack(self, "blocks", [self.block(grid)], rates, x, train, taps=taps)
        features = {
            f"stage{s}": x[:, self.prefix :].reshape(-1, *grid, self.width) for s, x in enumerate(stages, start=1)
        }
        features["pooled"] = pooled = self.pool(self.norm()(stages[-1]))
        return Output(self.classify(pooled, train, self.head_init), features)


def even_taps(depth: int) -> tuple[int, ...]:
    """Returns the blocks after which four stages of `depth` blocks end: evenly spaced, the last at the end."""
    return tuple(-(-depth * i // 4) for i in (1, 2, 3, 4))

"""One for all: the student's stages predict classes themselves, and learn them from the teacher (Hao et al., 2023)."""

import math
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from lfcc_jax.losses import ofa
from lfcc_jax.methods.method import (
    STAGES,
    Batch,
    BatchNorm,
    Exponent,
    Method,
    Stages,
    TeacherOutput,
    Temperature,
    Weight,
)
from lfcc_jax.models import Output
from lfcc_jax.models.layers import LayerNorm, trunc_normal
from lfcc_jax.models.vit import Block


class OFA(Method):
    """The loss `lfcc_jax.losses.ofa` of the student's logits, and of those of a trained exit at each of its stages.

    An exit brings a map to the size of the last stage's, pools it, and classifies it. It departs from the authors' code
    in that plain networks, whose stages are all of one size, are not merged to a coarser grid before the attention, in
    that pooling is always the mean, and in the widths of the layers.

    Attributes:
      stages: the student's feature maps that have an exit, by name.
      branch: `convolution` halves a map by depthwise separable convolutions: for CNNs. `attention` merges 2x2 patches,
        then has a Transformer block for each stage that is to come: for Transformers and MLPs. Both take any map.
      exponent: of the enhanced true class.
      temperature: divides both networks' logits.
      exit_weight: of the exits' losses, summed, over that of the logits.
    """

    stages: Stages = STAGES
    branch: Literal["convolution", "attention"] = "convolution"
    exponent: Exponent = 1.0
    temperature: Temperature = 1.0
    exit_weight: Weight = 1.0

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `ofa` and `ofa_exits`, both `[batch]`."""

        def loss(logits: Array) -> Array:
            settings = {"exponent": self.exponent, "temperature": self.temperature}
            return ofa(logits, teacher.logits, batch["label"], **settings)

        maps = [ours for ours, _ in self.maps(self.stages, student, teacher).values()]
        exits = 0.0
        for place, (stage, x) in enumerate(zip(self.stages, maps, strict=True), start=1):
            size, classes = maps[-1].shape[1], student.logits.shape[-1]
            if self.branch == "convolution":
                logits = ConvolutionExit(size, classes, name=stage)(x)
            else:
                logits = AttentionExit(size, classes, max(len(maps) - place, 1), name=stage)(x)
            exits += loss(logits)
        return {"ofa": loss(student.logits), "ofa_exits": self.exit_weight * exits}


class ConvolutionExit(nn.Module):
    """Halves a map, doubling its channels, until it is of `size`, by separable convolutions; then classifies."""

    size: int
    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Returns logits."""
        while x.shape[1] > self.size:
            channels = x.shape[-1]
            x = nn.Conv(channels, (3, 3), 2, [(1, 1), (1, 1)], feature_group_count=channels, use_bias=False)(x)
            x = nn.relu(BatchNorm()(nn.Dense(2 * channels, use_bias=False)(x)))
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


class AttentionExit(nn.Module):
    """Merges 2x2 patches, doubling the channels, until a map is of `size`; then Transformer blocks; then classifies."""

    size: int
    classes: int
    blocks: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Returns logits."""
        while x.shape[1] > self.size:
            x = nn.Conv(2 * x.shape[-1], (2, 2), 2, "SAME", use_bias=False)(LayerNorm()(x))
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        for b in range(self.blocks):
            width = tokens.shape[-1]
            tokens = Block(math.gcd(4, width), 4 * width, trunc_normal, name=f"block{b}")(tokens, train=True)
        return nn.Dense(self.classes, name="head")(LayerNorm(name="norm")(tokens).mean(axis=1))

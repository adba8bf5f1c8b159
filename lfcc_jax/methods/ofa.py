"""One for all: trained exits at the student's stages learn the teacher's prediction (Hao et al., 2023)."""

from typing import ClassVar, Literal

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax import losses
from lfcc_jax.methods.heads import AttentionExit, ConvolutionExit
from lfcc_jax.methods.method import STAGES, Batch, Exponent, Method, Stages, TeacherOutput, Temperature, Weight
from lfcc_jax.models import Output


class OFA(Method):
    """`lfcc_jax.losses.ofa` of the student's logits and of those of a trained exit at each of its stages.

    An exit reduces a map to the size of the last stage's, pools it and classifies it. Departures from the authors'
    code: the maps of plain networks, which all have one size, are not merged to a coarser grid before the attention;
    pooling is always the mean; and the widths of the layers differ.

    Attributes:
      stages: Names of the student's feature maps that get an exit.
      branch: "convolution", for CNNs, halves a map with depthwise separable convolutions. "attention", for
        Transformers and MLPs, merges 2x2 patches and adds a Transformer block for each stage that follows. Either can
        be used with any network.
      exponent: Exponent of the enhanced true class.
      temperature: Divides the logits of both networks.
      exit_weight: Weight of the sum of the exits' losses, relative to the loss of the logits.
    """

    needs_logits: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    stages: Stages = STAGES
    branch: Literal["convolution", "attention"] = "convolution"
    exponent: Exponent = 1.0
    temperature: Temperature = 1.0
    exit_weight: Weight = 1.0

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns the losses of the `logits` and of all `exits`, both `[batch]`."""

        def loss(logits: Array) -> Array:
            settings = {"exponent": self.exponent, "temperature": self.temperature}
            return losses.ofa(logits, teacher.logits, batch["label"], **settings)

        maps = [ours for ours, _ in self.maps(self.stages, student, teacher).values()]
        size, classes = maps[-1].shape[1], student.logits.shape[-1]
        exits = 0.0
        for i, (stage, x) in enumerate(zip(self.stages, maps, strict=True), start=1):
            if self.branch == "convolution":
                logits = ConvolutionExit(size, classes, name=stage)(x)
            else:
                logits = AttentionExit(size, classes, max(len(maps) - i, 1), name=stage)(x)
            exits += loss(logits)
        return {"logits": loss(student.logits), "exits": self.exit_weight * exits}

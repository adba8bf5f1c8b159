"""Methods that compare relations between the images of a batch."""

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax import losses
from lfcc_jax.methods.heads import embed
from lfcc_jax.methods.method import Batch, MapMethod, Method, Stages, TeacherOutput, Weight, Width
from lfcc_jax.models import Output


class SP(MapMethod):
    """Similarity preservation (Tung and Mori, 2019); see `lfcc_jax.losses.sp`."""

    stages: Stages = ("stage4",)

    def _loss(self, student: Array, teacher: Array, stage: str) -> Array:
        return losses.sp(student, teacher)


class CC(Method):
    """The correlation loss that published benchmarks list as CC (Peng et al., 2019); see `lfcc_jax.losses.cc`.

    It compares linear embeddings of the pooled features. Both are trained, as in the published code.

    Attributes:
      width: Channels of the embeddings.
    """

    width: Width = 128

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss, a scalar."""
        return losses.cc(*embed(*self.pooled(student, teacher), self.width))


class RKD(Method):
    """Relational knowledge distillation (Park et al., 2019) of the pooled features; see `lfcc_jax.losses.rkd`.

    Attributes:
      distance_weight: Weight of the distances' term.
      angle_weight: Weight of the angles' term.
    """

    distance_weight: Weight = 25.0
    angle_weight: Weight = 50.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        settings = {"distance_weight": self.distance_weight, "angle_weight": self.angle_weight}
        return losses.rkd(*self.pooled(student, teacher), **settings)


class PKT(Method):
    """Probabilistic knowledge transfer (Passalis and Tefas, 2018) of the pooled features; see `lfcc_jax.losses.pkt`."""

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        return losses.pkt(*self.pooled(student, teacher))

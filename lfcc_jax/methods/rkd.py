"""Relational distillation: distances and angles between the images of a batch (Park et al., 2019)."""

from jaxtyping import Array

from lfcc_jax.losses import rkd
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Weight
from lfcc_jax.models import Output


class RKD(Method):
    """See `lfcc_jax.losses.rkd`, here of the pooled features.

    Attributes:
      distance_weight: of the distances.
      angle_weight: of the angles.
    """

    distance_weight: Weight = 25.0
    angle_weight: Weight = 50.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `rkd` `[batch]`."""
        settings = {"distance_weight": self.distance_weight, "angle_weight": self.angle_weight}
        return {"rkd": rkd(*self.pooled(student, teacher), **settings)}

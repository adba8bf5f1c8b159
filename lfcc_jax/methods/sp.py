"""Similarity preservation: which images of a batch look alike (Tung and Mori, 2019)."""

from jaxtyping import Array

from lfcc_jax.losses import sp
from lfcc_jax.methods.method import Batch, Method, Stages, TeacherOutput
from lfcc_jax.models import Output


class SP(Method):
    """See `lfcc_jax.losses.sp`, here summed over stages. The authors give it the weight 3000.

    Attributes:
      stages: the feature maps that are compared, by name.
    """

    stages: Stages = ("stage4",)

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `sp` `[batch]`."""
        return {"sp": sum(sp(*maps) for maps in self.maps(self.stages, student, teacher).values())}

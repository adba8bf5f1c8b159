"""Attention transfer: where in the image the features are large (Zagoruyko and Komodakis, 2017)."""

from jaxtyping import Array

from lfcc_jax.losses import at
from lfcc_jax.methods.method import STAGES, Batch, Method, Stages, TeacherOutput
from lfcc_jax.models import Output


class AT(Method):
    """See `lfcc_jax.losses.at`, here summed over stages. The authors give it the weight 1000.

    Attributes:
      stages: the feature maps that are compared, by name.
    """

    stages: Stages = STAGES

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `at` `[batch]`."""
        return {"at": sum(at(*maps) for maps in self.maps(self.stages, student, teacher).values())}

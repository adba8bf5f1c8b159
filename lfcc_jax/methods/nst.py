"""Neuron selectivity transfer: how a map's channels are distributed (Huang and Wang, 2017)."""

from jaxtyping import Array

from lfcc_jax.losses import nst
from lfcc_jax.methods.method import STAGES, Batch, Method, Stages, TeacherOutput
from lfcc_jax.models import Output


class NST(Method):
    """See `lfcc_jax.losses.nst`, here summed over stages. The usual weight is 50.

    Attributes:
      stages: the feature maps that are compared, by name.
    """

    stages: Stages = STAGES

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `nst` `[batch]`."""
        return {"nst": sum(nst(*maps) for maps in self.maps(self.stages, student, teacher).values())}

"""Probabilistic knowledge transfer: which neighbors an image picks in the batch (Passalis and Tefas, 2018)."""

from jaxtyping import Array

from lfcc_jax.losses import pkt
from lfcc_jax.methods.method import Batch, Method, TeacherOutput
from lfcc_jax.models import Output


class PKT(Method):
    """See `lfcc_jax.losses.pkt`, here of the pooled features. The usual weight is 30000."""

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `pkt` `[batch]`."""
        return {"pkt": pkt(*self.pooled(student, teacher))}

"""Weighted transformed teacher matching: TTM where the teacher is uncertain (Zheng and Yang, 2024)."""

from jaxtyping import Array

from lfcc_jax.losses import wttm
from lfcc_jax.methods.method import Batch, Exponent, Method, TeacherOutput
from lfcc_jax.models import Output


class WTTM(Method):
    """See `lfcc_jax.losses.wttm`.

    Attributes:
      exponent: of the teacher's probabilities, the inverse of its temperature.
    """

    exponent: Exponent = 0.2

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `wttm` `[batch]`."""
        return {"wttm": wttm(student.logits, teacher.logits, exponent=self.exponent)}

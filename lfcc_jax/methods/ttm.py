"""Transformed teacher matching: the teacher alone is softened (Zheng and Yang, 2024)."""

from jaxtyping import Array

from lfcc_jax.losses import ttm
from lfcc_jax.methods.method import Batch, Exponent, Method, TeacherOutput
from lfcc_jax.models import Output


class TTM(Method):
    """See `lfcc_jax.losses.ttm`.

    Attributes:
      exponent: of the teacher's probabilities, the inverse of its temperature.
    """

    exponent: Exponent = 0.2

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `ttm` `[batch]`."""
        return {"ttm": ttm(student.logits, teacher.logits, exponent=self.exponent)}

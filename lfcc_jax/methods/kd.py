"""Knowledge distillation on logits (Hinton et al., Distilling the Knowledge in a Neural Network, 2015)."""

from jaxtyping import Array

from lfcc_jax.losses import kd
from lfcc_jax.methods.method import Batch, Method
from lfcc_jax.models import Output


class KD(Method):
    """The divergence of the student's softened prediction from the teacher's.

    Attributes:
      temperature: divides both networks' logits; the loss carries its square.
    """

    temperature: float = 1.0

    def __call__(self, batch: Batch, student: Output, teacher: Output | None) -> dict[str, Array]:
        """Returns `kd` `[batch]`."""
        return {"kd": kd(student.logits, teacher.logits, temperature=self.temperature)}

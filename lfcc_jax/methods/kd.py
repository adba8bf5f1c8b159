"""Knowledge distillation on logits (Hinton et al., Distilling the Knowledge in a Neural Network, 2015)."""

from jaxtyping import Array

from lfcc_jax.losses import kd, standardize_logits
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Temperature
from lfcc_jax.models import Output


class KD(Method):
    """The divergence of the student's softened prediction from the teacher's.

    Attributes:
      temperature: divides both networks' logits; the loss carries its square.
      standardize: whether each image's logits are first brought to mean 0 and standard deviation 1; see
        `lfcc_jax.losses.standardize_logits`. Its authors use temperature 2 and weight 9 then.
    """

    temperature: Temperature = 1.0
    standardize: bool = False

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `kd` `[batch]`."""
        logits = student.logits, teacher.logits
        if self.standardize:
            logits = map(standardize_logits, logits)
        return {"kd": kd(*logits, temperature=self.temperature)}

"""Decoupled distillation: the true class, and the others by themselves (Zhao et al., 2022)."""

from jaxtyping import Array

from lfcc_jax.losses import dkd
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Temperature, Weight
from lfcc_jax.models import Output


class DKD(Method):
    """See `lfcc_jax.losses.dkd`. The authors let its weight grow over the first 20 epochs on CIFAR-100.

    Attributes:
      alpha: weight of the true class's term.
      beta: weight of the other classes' term.
      temperature: divides both networks' logits.
    """

    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Temperature = 4.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `dkd` `[batch]`."""
        settings = {"alpha": self.alpha, "beta": self.beta, "temperature": self.temperature}
        return {"dkd": dkd(student.logits, teacher.logits, batch["label"], **settings)}

"""DIST: correlations within examples and within classes (Huang et al., 2022)."""

from jaxtyping import Array

from lfcc_jax.losses import dist
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Temperature, Weight
from lfcc_jax.models import Output


class DIST(Method):
    """See `lfcc_jax.losses.dist`. The authors give it the weight 2.

    Attributes:
      beta: weight of the relation between the classes of an example.
      gamma: weight of the relation between the examples of a class.
      temperature: divides both networks' logits; 4 on CIFAR-100.
    """

    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Temperature = 1.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `dist`, a scalar."""
        settings = {"beta": self.beta, "gamma": self.gamma, "temperature": self.temperature}
        return {"dist": dist(student.logits, teacher.logits, **settings)}

"""Cross-entropy with the true labels: the one method that needs no teacher."""

from typing import Annotated, ClassVar

from jaxtyping import Array

from lfcc_jax.arguments import HalfOpenFraction
from lfcc_jax.losses import cross_entropy
from lfcc_jax.methods.method import Batch, Method, TeacherOutput
from lfcc_jax.models import Output


class CrossEntropy(Method):
    """Softmax cross-entropy of the student's logits with `batch["label"]`, or `batch["target"]` of mixed images.

    Attributes:
      label_smoothing: the probability spread evenly over all classes.
    """

    needs_teacher: ClassVar[bool] = False
    label_smoothing: Annotated[float, HalfOpenFraction] = 0.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `cross_entropy` `[batch]`."""
        labels = batch.get("target", batch["label"])
        return {"cross_entropy": cross_entropy(student.logits, labels, label_smoothing=self.label_smoothing)}

"""Methods that compare logits, and cross-entropy with the labels. None has heads."""

from typing import Annotated, ClassVar

from jaxtyping import Array

from lfcc_jax import losses
from lfcc_jax.arguments import HalfOpenFraction
from lfcc_jax.methods.method import Batch, Exponent, Method, TeacherOutput, Temperature, Weight
from lfcc_jax.models import Output


class CrossEntropy(Method):
    """Cross-entropy of the student with `batch["label"]`, or with `batch["target"]` for mixed images.

    Attributes:
      label_smoothing: Probability that is spread evenly over all classes.
    """

    block: ClassVar[str] = "cross_entropy"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    label_smoothing: Annotated[float, HalfOpenFraction] = 0.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        labels = batch.get("target", batch["label"])
        return losses.cross_entropy(student.logits, labels, label_smoothing=self.label_smoothing)


class KD(Method):
    """Knowledge distillation on logits (Hinton et al., 2015); see `lfcc_jax.losses.kd`.

    Attributes:
      temperature: Divides the logits of both networks; the loss is multiplied by its square.
      standardize: Whether to standardize the logits of each image first; see `lfcc_jax.losses.standardize_logits`.
    """

    needs_logits: ClassVar[bool] = True
    temperature: Temperature = 1.0
    standardize: bool = False

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        logits = student.logits, teacher.logits
        if self.standardize:
            logits = map(losses.standardize_logits, logits)
        return losses.kd(*logits, temperature=self.temperature)


class DKD(Method):
    """Decoupled knowledge distillation (Zhao et al., 2022); see `lfcc_jax.losses.dkd`.

    Attributes:
      alpha: Weight of the true class's term.
      beta: Weight of the other classes' term.
      temperature: Divides the logits of both networks.
    """

    needs_logits: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Temperature = 4.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        settings = {"alpha": self.alpha, "beta": self.beta, "temperature": self.temperature}
        return losses.dkd(student.logits, teacher.logits, batch["label"], **settings)


class RLD(Method):
    """Refined logit distillation (Sun et al., 2025); see `lfcc_jax.losses.rld`.

    Of a mixed image it reads the class of the larger fraction, as `DKD` does; the authors do not mix images.

    Attributes:
      alpha: Weight of the confidence's term.
      beta: Weight of the term of the classes that the teacher ranks below the true one.
      temperature: Divides the logits of both networks in the second term.
      alpha_temperature: Divides the logits of both networks in the first term.
      standardize: Whether to standardize the logits of each image first; see `lfcc_jax.losses.standardize_logits`.
    """

    needs_logits: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Temperature = 4.0
    alpha_temperature: Temperature = 1.0
    standardize: bool = False

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        logits = student.logits, teacher.logits
        if self.standardize:
            logits = map(losses.standardize_logits, logits)
        return losses.rld(
            *logits,
            batch["label"],
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            alpha_temperature=self.alpha_temperature,
        )


class DIST(Method):
    """DIST: correlations within examples and within classes (Huang et al., 2022); see `lfcc_jax.losses.dist`.

    Attributes:
      beta: Weight of the correlation between the classes of an example.
      gamma: Weight of the correlation between the examples of a class.
      temperature: Divides the logits of both networks.
    """

    needs_logits: ClassVar[bool] = True
    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Temperature = 1.0

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss, a scalar."""
        settings = {"beta": self.beta, "gamma": self.gamma, "temperature": self.temperature}
        return losses.dist(student.logits, teacher.logits, **settings)


class TTM(Method):
    """Transformed teacher matching (Zheng and Yang, 2024); see `lfcc_jax.losses.ttm`.

    Attributes:
      exponent: Exponent of the teacher's probabilities, the inverse of its temperature.
    """

    needs_logits: ClassVar[bool] = True
    exponent: Exponent = 0.2

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        return losses.ttm(student.logits, teacher.logits, exponent=self.exponent)


class WTTM(Method):
    """TTM weighted by the teacher's uncertainty (Zheng and Yang, 2024); see `lfcc_jax.losses.wttm`.

    Attributes:
      exponent: Exponent of the teacher's probabilities, the inverse of its temperature.
    """

    needs_logits: ClassVar[bool] = True
    exponent: Exponent = 0.2

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        return losses.wttm(student.logits, teacher.logits, exponent=self.exponent)

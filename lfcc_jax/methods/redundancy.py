"""Methods on the correlations between channels over a batch."""

from typing import Annotated, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from lfcc_jax import losses
from lfcc_jax.arguments import Between
from lfcc_jax.errors import UserError
from lfcc_jax.methods.heads import BatchNorm
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Weight
from lfcc_jax.models import Output
from lfcc_jax.models.layers import gelu, trunc_normal


class RSD(Method):
    """Redundancy suppression (Zhang et al., 2025); see `lfcc_jax.losses.rsd`.

    The student's pooled features are projected by two linear layers without biases, with batch normalization and an
    exact GELU between them; logits are compared as they are. The gradient for logits is large while the student's
    barely differ between images, as those of a classifier that is initialized to zeros (MLP-Mixer, ResMLP): clip it.

    Attributes:
      on: What is compared: "pooled" features or "logits".
      kappa: Weight of the correlations between different channels.
      groups: Number of equal parts of the global batch, in order, whose statistics are computed separately, including
        those of the batch normalization. The authors' code has one for each GPU's 128 images. It does not depend on the
        number of devices.
      expansion: Hidden channels of the projector, as a multiple of the student's.
    """

    on: Literal["pooled", "logits"] = "pooled"
    kappa: Weight = 0.01
    groups: Annotated[int, Between(1, 2**16)] = 1
    expansion: Annotated[int, Between(1, 64)] = 2

    @property
    def needs_logits(self) -> bool:
        """Whether logits are compared."""
        return self.on == "logits"

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss, a scalar."""
        ours, theirs = (student.logits, teacher.logits) if self.needs_logits else self.pooled(student, teacher)
        groups = 1 if self.is_initializing() else self.groups  # heads are initialized with a single image
        if ours.shape[0] % groups:
            raise UserError(
                f"{self.config_path}.groups must divide the batch of {ours.shape[0]} images, got {self.groups}"
            )
        if self.on == "pooled":
            projector = nn.vmap(_Projector, variable_axes={"params": None}, split_rngs={"params": False})
            parts = ours.reshape(groups, -1, ours.shape[1])
            parts = projector(self.expansion * ours.shape[1], theirs.shape[1], name="projector")(parts)
            ours = parts.reshape(theirs.shape)
        return losses.rsd(ours, theirs, kappa=self.kappa, groups=groups)


class _Projector(nn.Module):
    """Two linear layers without biases; batch normalization and an exact GELU between them."""

    hidden: int
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch channels"]:
        """Returns the projected features."""
        x = nn.Dense(self.hidden, use_bias=False, kernel_init=trunc_normal, name="expand")(x)
        x = gelu(BatchNorm(name="norm")(x))
        return nn.Dense(self.channels, use_bias=False, kernel_init=trunc_normal, name="reduce")(x)

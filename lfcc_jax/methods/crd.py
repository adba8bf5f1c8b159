"""Contrastive representation distillation against the other images of the batch (after Tian et al., 2020)."""

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax.losses import info_nce
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Temperature, Width
from lfcc_jax.models import Output


class CRD(Method):
    """A contrast of linear codes of the pooled features: each image's two codes belong together, others' do not.

    `lfcc_jax.losses.info_nce` in both directions, instead of the authors' estimate over a memory of the whole data set,
    which is `crd_bank`.

    Attributes:
      width: channels of the codes.
      temperature: divides the cosine similarities.
      same_class: whether images of one class are told apart from each other; the authors' code does not.
    """

    width: Width = 128
    temperature: Temperature = 0.07
    same_class: bool = False

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `crd` `[batch]`."""
        ours, theirs = self.pooled(student, teacher)
        loss = info_nce(
            nn.Dense(self.width, name="student")(ours),
            nn.Dense(self.width, name="teacher")(theirs),
            temperature=self.temperature,
            negatives="symmetric",
            labels=None if self.same_class else batch["label"],
        )
        return {"crd": loss}

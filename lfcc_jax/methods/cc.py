"""The correlation loss of the published benchmarks, listed there as CC (Peng et al., 2019)."""

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax.losses import cc
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Width
from lfcc_jax.models import Output


class CC(Method):
    """See `lfcc_jax.losses.cc`, here of linear embeddings of the pooled features. The usual weight is 0.02.

    Attributes:
      width: channels of the embeddings. Both are trained, the teacher's too, as in the published code.
    """

    width: Width = 128

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `cc`, a scalar."""
        ours, theirs = self.pooled(student, teacher)
        return {"cc": cc(nn.Dense(self.width, name="student")(ours), nn.Dense(self.width, name="teacher")(theirs))}

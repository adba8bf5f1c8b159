"""ReviewKD's hierarchical context loss (Chen et al., 2021), without the attention that fuses stages there."""

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax.losses import hcl
from lfcc_jax.losses.features import match_sizes
from lfcc_jax.methods.method import STAGES, Batch, Method, Stages, TeacherOutput
from lfcc_jax.models import Output


class HCL(Method):
    """See `lfcc_jax.losses.hcl`, here summed over stages, after a linear map of the student's channels.

    ReviewKD gives each stage of the teacher a fusion of all deeper stages of the student; here it is that stage alone.

    Attributes:
      stages: the feature maps that are compared, by name.
    """

    stages: Stages = STAGES

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `hcl` `[batch]`."""
        loss = 0.0
        for stage, (ours, theirs) in self.maps(self.stages, student, teacher).items():
            # Shrinking commutes with a linear map of the channels, which is then cheaper.
            ours, theirs = match_sizes(ours, theirs)
            loss += hcl(nn.Dense(theirs.shape[-1], use_bias=False, name=stage)(ours), theirs)
        return {"hcl": loss}

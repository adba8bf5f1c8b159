"""FitNet: the teacher's feature maps, regressed (Romero et al., 2015), between any two networks."""

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax.losses import fitnet
from lfcc_jax.losses.features import match_sizes
from lfcc_jax.methods.method import STAGES, Batch, Method, Stages, TeacherOutput
from lfcc_jax.models import Output


class FitNet(Method):
    """See `lfcc_jax.losses.fitnet`, here summed over stages, after a linear map of the student's channels.

    Together with `kd` a strong baseline between heterogeneous networks.

    Attributes:
      stages: the feature maps that are compared, by name.
    """

    stages: Stages = STAGES

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `fitnet` `[batch]`."""
        loss = 0.0
        for stage, (ours, theirs) in self.maps(self.stages, student, teacher).items():
            # Shrinking commutes with a linear map of the channels, which is then cheaper.
            ours, theirs = match_sizes(ours, theirs)
            loss += fitnet(nn.Dense(theirs.shape[-1], use_bias=False, name=stage)(ours), theirs)
        return {"fitnet": loss}

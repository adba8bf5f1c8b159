"""Variational information distillation: a trained model of the teacher's maps (Ahn et al., 2019)."""

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax.losses import vid, vid_scale_init
from lfcc_jax.methods.method import STAGES, Batch, Method, Stages, TeacherOutput
from lfcc_jax.models import Output


class VID(Method):
    """See `lfcc_jax.losses.vid`, here summed over stages. The mean is a regression by three 1x1 convolutions.

    Attributes:
      stages: the feature maps that are compared, by name.
    """

    stages: Stages = STAGES

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `vid` `[batch]`."""
        loss = 0.0
        for stage, (ours, theirs) in self.maps(self.stages, student, teacher).items():
            channels = theirs.shape[-1]
            for layer in (1, 2, 3):
                ours = nn.Dense(channels, use_bias=False, name=f"{stage}_layer{layer}")(ours)
                ours = nn.relu(ours) if layer < 3 else ours
            log_scale = self.param(f"{stage}_log_scale", lambda _, size: vid_scale_init(size), channels)
            loss += vid(ours, theirs, log_scale)
        return {"vid": loss}

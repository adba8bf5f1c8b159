"""Distillation of similarities to a queue of the teacher's vectors, as in LightlyTrain."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from lfcc_jax import losses
from lfcc_jax.arguments import Between
from lfcc_jax.errors import UserError
from lfcc_jax.losses.numerics import unit
from lfcc_jax.methods.method import Batch, Method, Stages, TeacherOutput, Temperature, Weight
from lfcc_jax.models import Output
from lfcc_jax.models.layers import trunc_normal
from lfcc_jax.precision import widen


class Queue(Method):
    """Similarities to a queue of the teacher's pooled features, and between positions; see `queue_similarity`.

    The method of LightlyTrain's distillation, version 3; its version 1 is `local_weight` 0. It needs no labels. The
    queue holds the teacher's vectors of the last images, those of the current batch included, newest first. Trained
    linear maps bring the student's pooled features and maps to the teacher's channels. Two departures from that code:
    entries that are not filled yet are left out instead of counting as vectors without similarity, and there is one
    queue for the global batch instead of one for each device, so that results do not depend on their number.

    Attributes:
      size: Length of the queue. LightlyTrain has 8192 for more than 20,000 images, and 16 for 50.
      stages: Names of the feature maps whose positions are compared.
      temperature: Divides the cosine similarities.
      local_weight: Weight of the positions' part. Without it, no maps are needed.
    """

    size: Annotated[int, Between(1, 2**20)] = 8192
    stages: Stages = ("stage4",)
    temperature: Temperature = 0.07
    local_weight: Weight = 1.0

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns the losses of the pooled features, `global`, and of the positions, `local`, both `[batch]`."""
        ours, theirs = self.pooled(student, teacher)
        queue = self.variable("memory", "queue", jnp.zeros, (self.size, theirs.shape[1]))
        entries = jnp.concatenate([unit(theirs), queue.value])[: self.size]
        if not self.is_initializing():
            queue.value = entries
        parts = {
            "global": losses.queue_similarity(
                _linear(theirs.shape[1], "pooled")(ours),
                theirs,
                entries,
                temperature=self.temperature,
                where=jnp.any(entries != 0, axis=1),
            )
        }
        if self.local_weight:
            local = 0.0
            for stage, (x, target) in self.maps(self.stages, student, teacher).items():
                if 1 in (x.shape[1] * x.shape[2], target.shape[1] * target.shape[2]):
                    raise UserError(
                        f"{self.config_path}.stages must name maps larger than 1 x 1, got '{stage}'; use earlier "
                        "stages, or local_weight=0"
                    )
                projected = _linear(target.shape[-1], stage)(widen(x))
                local += losses.token_similarity(projected, target, temperature=self.temperature)
            parts["local"] = self.local_weight * local
        return parts


def _linear(channels: int, name: str) -> nn.Dense:
    return nn.Dense(channels, kernel_init=trunc_normal, name=name)

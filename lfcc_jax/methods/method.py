"""What a distillation method is: trainable heads and losses, between any two networks."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array

from lfcc_jax.arguments import Between, Distinct, NonNegative
from lfcc_jax.errors import unknown
from lfcc_jax.models import Network, Output

# `image` `[B, H, W, C]` in [0, 1] and `label` `[B]`, as the networks saw them; `index` `[B]`, each image's number among
# the training images; of images mixed out of two, `target` `[B, classes]` too, and `label` is that of the larger share.
Batch = dict[str, Array]


class TeacherOutput(NamedTuple):
    """What a teacher returns, and its classifier.

    Attributes:
      logits: as in `Output`.
      features: as in `Output`.
      head: `kernel` `[channels, classes]` and `bias` `[classes]`, which make the logits of `features["pooled"]`; empty
        if the network has no such layer called `head`.
    """

    logits: Array
    features: dict[str, Array]
    head: dict[str, Array]


def teach(teacher: Network, variables: Any, images: Array) -> TeacherOutput:
    """Runs a teacher in evaluation mode, and lets no gradient through."""
    output = teacher.apply(variables, images, train=False)
    return jax.lax.stop_gradient(TeacherOutput(*output, variables["params"].get("head", {})))


class Method(nn.Module):
    """Base of all methods: `method(batch, student, teacher) -> {name: loss}`.

    A method's fields are its settings, and so the keys of its config block. Heads that it trains are Linen parameters;
    what it remembers between steps lives in collections of other names. Both are checkpointed, and neither is part of
    the student.
    """

    needs_teacher: ClassVar[bool] = True

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns losses by name: `[batch]`, or a scalar where one is a statistic of the batch.

        No gradient may reach the teacher.
        """
        raise NotImplementedError

    def maps(self, stages: Sequence[str], student: Output, teacher: TeacherOutput) -> dict[str, tuple[Array, Array]]:
        """Returns the student's and the teacher's feature map at each stage, the latter without a gradient.

        Raises:
          UserError: for a stage that either does not have.
        """
        for output in (student, teacher):
            known = [name for name, x in output.features.items() if x.ndim == 4]
            for stage in stages:
                if stage not in known:
                    raise unknown("stage", stage, known, f"config.losses.{type(self).__name__.lower()}.stages")
        theirs = jax.lax.stop_gradient(teacher.features)
        return {stage: (student.features[stage], theirs[stage]) for stage in stages}

    def pooled(self, student: Output, teacher: TeacherOutput) -> tuple[Array, Array]:
        """Returns the vectors that the two classifiers read, the teacher's without a gradient."""
        return student.features["pooled"], jax.lax.stop_gradient(teacher.features["pooled"])


STAGES = ("stage1", "stage2", "stage3", "stage4")

# Settings that several methods have, with their bounds.
Stages = Annotated[tuple[str, ...], Distinct]
Width = Annotated[int, Between(1, 16384)]
Temperature = Annotated[float, Between(1e-3, 1e3)]
Exponent = Annotated[float, Between(1e-3, 1e3)]
Weight = Annotated[float, NonNegative]


class BatchNorm(nn.Module):
    """Batch normalization for heads. They never run in evaluation, so no running statistics are kept."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `x` with zero mean and unit variance in each channel, then scaled and shifted."""
        axes = tuple(range(x.ndim - 1))
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        wide = (1,) * len(axes) + (-1,)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale.reshape(wide) + bias.reshape(wide)

"""Methods that compare the features of each image: maps at several stages, or pooled vectors (SRRL)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lfcc_jax import losses
from lfcc_jax.errors import UserError
from lfcc_jax.losses.features import match_sizes
from lfcc_jax.methods.heads import BatchNorm
from lfcc_jax.methods.method import Batch, MapMethod, Method, TeacherOutput
from lfcc_jax.models import Output


class FitNet(MapMethod):
    """FitNet (Romero et al., 2015), with a trained linear map of the student's channels; see `lfcc_jax.losses.fitnet`.

    Together with `kd` a strong baseline between heterogeneous networks.
    """

    def _loss(self, student: Array, teacher: Array, stage: str) -> Array:
        return losses.fitnet(*_projected(student, teacher, stage))


class AT(MapMethod):
    """Attention transfer (Zagoruyko and Komodakis, 2017); see `lfcc_jax.losses.at`."""

    def _loss(self, student: Array, teacher: Array, stage: str) -> Array:
        return losses.at(student, teacher)


class NST(MapMethod):
    """Neuron selectivity transfer (Huang and Wang, 2017); see `lfcc_jax.losses.nst`."""

    def _loss(self, student: Array, teacher: Array, stage: str) -> Array:
        return losses.nst(student, teacher)


class VID(MapMethod):
    """Variational information distillation (Ahn et al., 2019); see `lfcc_jax.losses.vid`.

    Three 1x1 convolutions predict the teacher's map.
    """

    def _loss(self, student: Array, teacher: Array, stage: str) -> Array:
        channels, x = teacher.shape[-1], student
        for layer in (1, 2, 3):
            x = nn.Dense(channels, use_bias=False, name=f"{stage}_layer{layer}")(x)
            x = nn.relu(x) if layer < 3 else x
        log_scale = self.param(f"{stage}_log_scale", lambda _, size: losses.vid_scale_init(size), channels)
        return losses.vid(x, teacher, log_scale)


class HCL(MapMethod):
    """ReviewKD's hierarchical context loss (Chen et al., 2021); see `lfcc_jax.losses.hcl`.

    A trained linear map brings the student's channels to the teacher's. ReviewKD compares each stage of the teacher
    with an attention-based fusion of all deeper stages of the student; this is the same stage alone.
    """

    def _loss(self, student: Array, teacher: Array, stage: str) -> Array:
        return losses.hcl(*_projected(student, teacher, stage))


class SRRL(Method):
    r"""Softmax regression (Yang et al., 2021): the teacher's classifier reads the student's projected features.

    .. math::
      \frac{1}{D} |P(f^s) - f^t|^2 + \frac{1}{C} |W^t P(f^s) + b^t - z^t|^2

    with P a linear map and batch normalization. The authors' P also ends with a ReLU, because the pooled features of a
    CNN are nonnegative; those of a Transformer are not, so there is none here. They use it with `kd`, with weight 1.
    Classes that the teacher masks with a logit of minus infinity are left out of the second term.

    Reference: Yang et al., `Knowledge Distillation via Softmax Regression Representation Learning
    <https://openreview.net/forum?id=ZzwDy_wiWv>`_, 2021.
    """

    needs_logits: ClassVar[bool] = True

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        if {"kernel", "bias"} - teacher.head.keys():
            raise UserError("config.losses.srrl needs a teacher whose classifier is one linear layer called 'head'")
        ours, theirs = self.pooled(student, teacher)
        projected = BatchNorm(name="norm")(nn.Dense(theirs.shape[-1], use_bias=False, name="projection")(ours))
        kernel, bias, logits = jax.lax.stop_gradient((teacher.head["kernel"], teacher.head["bias"], teacher.logits))
        masked = jnp.isneginf(logits)
        errors = jnp.where(masked, 0, projected @ kernel + bias[None, :] - logits)
        feature_loss = jnp.mean(jnp.square(projected - theirs), axis=1)
        return feature_loss + jnp.mean(jnp.square(errors), axis=1, where=~masked)


def _projected(student: Array, teacher: Array, stage: str) -> tuple[Array, Array]:
    """Returns both maps in the smaller size, with the student's channels mapped linearly to the teacher's."""
    # Resizing commutes with a linear map of the channels, which is cheaper on the smaller map.
    student, teacher = match_sizes(student, teacher)
    return nn.Dense(teacher.shape[-1], use_bias=False, name=stage)(student), teacher

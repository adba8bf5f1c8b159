"""Methods that compare the features of each image: maps at several stages, or pooled vectors, or both."""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lfcc_jax import losses
from lfcc_jax.arguments import Between, Distinct
from lfcc_jax.errors import UserError
from lfcc_jax.losses.features import VIEWS, match_sizes
from lfcc_jax.methods.heads import BatchNorm, RunningNorm
from lfcc_jax.methods.method import Batch, MapMethod, Method, Stages, TeacherOutput
from lfcc_jax.models import Output
from lfcc_jax.models.layers import Dense, gelu
from lfcc_jax.precision import widen

# ScaleKD's weights of its views.
_VIEW_WEIGHTS = {"spatial": 0.08, "frequency": 0.06}


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
        channels, x = teacher.shape[-1], widen(student)
        for layer in (1, 2, 3):
            x = Dense(channels, use_bias=False, name=f"{stage}_layer{layer}")(x)
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


class DualView(Method):
    """Two views of the last map, a variant of ScaleKD (Fan et al., 2024); see `lfcc_jax.losses.dual_view`.

    The loss is ScaleKD's, with its weights: 0.08 for the spatial view, 0.06 for the frequency view. The projectors are
    not: here, a trained linear map for each view brings the student's channels to the teacher's. ScaleKD has
    cross-attention there, and also passes the student's third stage through the last stage of the teacher. The
    frequency view leaves out only the lowest frequency, where `lfcc` keeps only low ones, so it is a control of `lfcc`.

    Attributes:
      stages: Names of the feature maps to compare.
      views: "spatial", "frequency", or both.
    """

    block: ClassVar[str] = "dual_view"
    stages: Stages = ("stage4",)
    views: Annotated[tuple[Literal[VIEWS], ...], Distinct] = VIEWS

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns the loss `[batch]` of each view."""
        parts = dict.fromkeys(self.views, 0.0)
        for stage, (x, target) in self.maps(self.stages, student, teacher).items():
            ours, theirs = match_sizes(x, target)
            if "frequency" in self.views and ours.shape[1] * ours.shape[2] == 1:
                raise UserError(
                    f"{self.config_path}.stages must name maps larger than 1 x 1, got '{stage}'; use earlier "
                    "stages, or views=('spatial',)"
                )
            for view in self.views:
                projected = Dense(theirs.shape[-1], use_bias=False, name=f"{stage}_{view}")(ours)
                parts[view] += _VIEW_WEIGHTS[view] * losses.dual_view(projected, theirs, view=view)
        return parts


class Regression(Method):
    """Regression of the teacher's features, as in UNIC (Sariyildiz et al., 2024); see `lfcc_jax.losses.regression`.

    Targets are standardized by running statistics of the teacher's channels. A trained MLP predicts them from the
    student's features at the same place: UNIC's head without its "ladder" of projectors, which sums one for each block.

    Attributes:
      on: What is compared: "pooled" features, "maps", or "both", with weight 1/2 each.
      stages: Names of the feature maps to compare.
      expansion: Hidden channels of the MLP, as a multiple of the student's.
    """

    on: Literal["both", "pooled", "maps"] = "both"
    stages: Stages = ("stage4",)
    expansion: Annotated[int, Between(1, 64)] = 4

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns the losses of `pooled` features and of `maps`, the mean over stages, both `[batch]`."""

        def loss(ours: Array, theirs: Array, name: str) -> Array:
            theirs = RunningNorm(name=f"{name}_statistics")(theirs)
            x = gelu(Dense(self.expansion * ours.shape[-1], name=f"{name}_expand")(ours))
            return losses.regression(Dense(theirs.shape[-1], name=f"{name}_reduce")(x), theirs)

        parts = {}
        if self.on != "maps":
            parts["pooled"] = loss(*self.pooled(student, teacher), "pooled")
        if self.on != "pooled":
            maps = self.maps(self.stages, student, teacher)
            parts["maps"] = sum(loss(*match_sizes(*pair), stage) for stage, pair in maps.items()) / len(maps)
        return {name: part / len(parts) for name, part in parts.items()}


def _projected(student: Array, teacher: Array, name: str) -> tuple[Array, Array]:
    """Returns both maps in the smaller size, with the student's channels mapped linearly to the teacher's."""
    # Resizing commutes with a linear map of the channels, which is cheaper on the smaller map.
    student, teacher = match_sizes(student, teacher)
    return Dense(teacher.shape[-1], use_bias=False, name=name)(student), teacher

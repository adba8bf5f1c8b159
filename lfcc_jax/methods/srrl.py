"""SRRL: the student's features, read by the teacher's own classifier (Yang et al., 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lfcc_jax.errors import UserError
from lfcc_jax.methods.method import Batch, BatchNorm, Method, TeacherOutput
from lfcc_jax.models import Output


class SRRL(Method):
    r"""Errors of the projected pooled features, and of the logits that the teacher's frozen classifier makes of them.

    .. math::
      \frac{1}{D} |P(f^s) - f^t|^2 + \frac{1}{C} |W^t P(f^s) + b^t - z^t|^2

    with P a linear map and batch normalization. The authors' P ends with a ReLU as well, since a CNN's pooled features
    are not negative; those of a Transformer are, so it is left out here. They use it with `kd`, with weight 1. Classes
    that the teacher masks with a logit of minus infinity are left out of the second term.

    Reference: Yang et al., `Knowledge Distillation via Softmax Regression Representation Learning
    <https://openreview.net/forum?id=ZzwDy_wiWv>`_, 2021.
    """

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `srrl` `[batch]`."""
        if {"kernel", "bias"} - teacher.head.keys():
            raise UserError("config.losses.srrl needs a teacher whose classifier is one linear layer called 'head'")
        ours, theirs = self.pooled(student, teacher)
        projected = BatchNorm(name="norm")(nn.Dense(theirs.shape[-1], use_bias=False, name="projection")(ours))
        kernel, bias, logits = jax.lax.stop_gradient((teacher.head["kernel"], teacher.head["bias"], teacher.logits))
        read = projected @ kernel + bias[None, :]
        masked = jnp.isneginf(logits)
        errors = jnp.where(masked, 0, read - logits)
        of_features = jnp.mean(jnp.square(projected - theirs), axis=1)
        return {"srrl": of_features + jnp.mean(jnp.square(errors), axis=1, where=~masked)}

"""Optimizers: gradient clipping, weight decay where it belongs, and SGD or AdamW."""

from typing import Annotated, Any

import jax
import optax

from lfcc_jax.arguments import Between, HalfOpenFraction, NonNegative, checked_arguments
from lfcc_jax.errors import unknown
from lfcc_jax.training.schedules import Schedule

# Those of equal blocks are stacked, and so have one axis more than a vector.
_NEVER_DECAYED = ("bias", "scale", "pos_embed", "position_bias", "class_token", "rows", "columns")
# Of ResMLP's affine maps. timm keeps them as [1, 1, channels], so that they decay in all recipes that use it.
_DECAYED_VECTORS = ("alpha", "beta")


def create(
    name: str, learning_rate: Schedule, clip_norm: Annotated[float, NonNegative] = 0.0, **settings: Any
) -> optax.GradientTransformation:
    """Returns the optimizer called `name`.

    Args:
      name: `sgd` or `adamw`.
      learning_rate: A function of the step.
      clip_norm: Maximum global norm of the gradient; 0 turns clipping off.
      **settings: Keyword arguments of the function of that name below.

    Raises:
      UserError: if the optimizer or a setting is unknown (with the nearest one), or a value is out of bounds.
    """
    where = "config.optimizer"
    checked_arguments(create, {"name": name, "learning_rate": learning_rate, "clip_norm": clip_norm}, where)
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS, f"{where}.name")
    arguments = checked_arguments(OPTIMIZERS[name], settings, where, {"learning_rate": learning_rate})
    optimizer = OPTIMIZERS[name](**arguments)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def sgd(
    learning_rate: Schedule,
    momentum: Annotated[float, HalfOpenFraction] = 0.9,
    nesterov: bool = True,
    weight_decay: Annotated[float, NonNegative] = 0.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent as in PyTorch: weight decay is added to the gradient, before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.sgd(learning_rate, momentum, nesterov),
    )


def adamw(
    learning_rate: Schedule,
    b1: Annotated[float, HalfOpenFraction] = 0.9,
    b2: Annotated[float, HalfOpenFraction] = 0.999,
    eps: Annotated[float, Between(1e-30, 1)] = 1e-8,
    weight_decay: Annotated[float, NonNegative] = 0.0,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), as in PyTorch."""
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


def decay_mask(params: Any) -> Any:
    """Returns True for each weight that decays, the same as with timm.

    Not biases, norms and other vectors, nor position and class tokens; but ResMLP's affine maps do. Nor the `rows` and
    `columns` of learned filters, which are logits: decay would turn every filter into the global mean.
    """

    def decays(path: tuple, leaf: jax.Array) -> bool:
        name = getattr(path[-1], "key", None)
        return name in _DECAYED_VECTORS or (leaf.ndim > 1 and name not in _NEVER_DECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}

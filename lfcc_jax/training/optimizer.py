"""Optimizers: gradient clipping, weight decay where it belongs, and SGD or AdamW."""

from typing import Any

import jax
import optax

from lfcc_jax.errors import checked_arguments, unknown
from lfcc_jax.training.schedules import Schedule

# Those of equal blocks are stacked, and so have one axis more than a vector.
_NEVER_DECAYED = ("bias", "scale", "pos_embed", "position_bias", "class_token", "rows", "columns")
# Of ResMLP's affine maps. timm keeps them as [1, 1, channels], so that they decay in all recipes that use it.
_DECAYED_VECTORS = ("alpha", "beta")


def create(name: str, learning_rate: Schedule, clip_norm: float = 0.0, **settings: Any) -> optax.GradientTransformation:
    """Returns the optimizer called `name`.

    Args:
      name: `sgd` or `adamw`.
      learning_rate: a function of the step.
      clip_norm: largest global norm of the gradient; 0 leaves it alone.
      **settings: keyword arguments of the function of that name below.

    Raises:
      UserError: for an unknown optimizer or setting, with the nearest one.
    """
    if name not in _OPTIMIZERS:
        raise unknown("optimizer", name, _OPTIMIZERS, "config.optimizer.name")
    given = {"learning_rate": learning_rate} | settings
    optimizer = _OPTIMIZERS[name](**checked_arguments(_OPTIMIZERS[name], given, f"config.optimizer ('{name}')"))
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def sgd(
    learning_rate: Schedule, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Stochastic gradient descent as in PyTorch: weight decay is added to the gradient, before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.sgd(learning_rate, momentum, nesterov),
    )


def adamw(
    learning_rate: Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
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


_OPTIMIZERS = {"adamw": adamw, "sgd": sgd}

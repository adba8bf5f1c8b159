"""Optimizers: SGD or AdamW, with gradient clipping and masked weight decay."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import optax

from lfcc_jax.arguments import Between, HalfOpenFraction, NonNegative, checked_arguments
from lfcc_jax.errors import unknown
from lfcc_jax.models import Network
from lfcc_jax.training.schedules import Schedule

# Returns whether a parameter has weight decay, given the last part of its path and its value; see `Network.decays`.
DecayRule = Callable[[str, Any], bool]

# Parameters of learned filters. They are logits: decay would pull every filter toward the global mean.
_FILTERS = ("rows", "columns")


def create(
    name: str,
    learning_rate: Schedule,
    clip_norm: Annotated[float, NonNegative] = 0.0,
    decays: DecayRule = Network.decays,
    **settings: Any,
) -> optax.GradientTransformation:
    """Returns the optimizer called `name`.

    Args:
      name: `sgd` or `adamw`.
      learning_rate: A function of the step.
      clip_norm: Maximum global norm of the gradient; 0 turns clipping off.
      decays: Rule of weight decay: the student's `Network.decays`.
      **settings: Keyword arguments of `sgd` or `adamw`.

    Raises:
      UserError: if the optimizer or a setting is unknown (with the nearest one), or a value is out of bounds.
    """
    where = "config.optimizer"
    checked_arguments(create, {"name": name, "learning_rate": learning_rate, "clip_norm": clip_norm}, where)
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS, f"{where}.name")
    set_by_run = {"learning_rate": learning_rate, "mask": lambda params: decay_mask(params, decays)}
    arguments = checked_arguments(OPTIMIZERS[name], settings, where, set_by_run)
    optimizer = OPTIMIZERS[name](**arguments)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def sgd(
    learning_rate: Schedule,
    mask: Callable[[Any], Any],
    momentum: Annotated[float, HalfOpenFraction] = 0.9,
    nesterov: bool = True,
    weight_decay: Annotated[float, NonNegative] = 0.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent as in PyTorch: weight decay is added to the gradient, before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum, nesterov),
    )


def adamw(
    learning_rate: Schedule,
    mask: Callable[[Any], Any],
    b1: Annotated[float, HalfOpenFraction] = 0.9,
    b2: Annotated[float, HalfOpenFraction] = 0.999,
    eps: Annotated[float, Between(1e-30, 1)] = 1e-8,
    weight_decay: Annotated[float, NonNegative] = 0.0,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), as in PyTorch."""
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def decay_mask(params: Any, decays: DecayRule = Network.decays) -> Any:
    """Returns True for each parameter that has weight decay.

    Args:
      params: Parameters of a network, or of a student and the heads of its losses.
      decays: The network's rule. Heads follow it too: apart from learned filters, which never decay, they consist of
        kernels, biases and scales, on which all networks agree.
    """

    def has_decay(path: tuple, leaf: jax.Array) -> bool:
        name = getattr(path[-1], "key", "")
        return name not in _FILTERS and decays(name, leaf)

    return jax.tree_util.tree_map_with_path(has_decay, params)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}

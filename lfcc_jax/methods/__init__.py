"""Distillation methods, one a file. A run adds up any number of them, each with a weight."""

from lfcc_jax.errors import checked_arguments, unknown
from lfcc_jax.methods.cross_entropy import CrossEntropy
from lfcc_jax.methods.kd import KD
from lfcc_jax.methods.lfcc import LFCC
from lfcc_jax.methods.method import Batch, Method

__all__ = ["Batch", "Method", "create", "list_methods"]

_METHODS = {"cross_entropy": CrossEntropy, "kd": KD, "lfcc": LFCC}


def list_methods() -> list[str]:
    """Returns the names that `create` takes, sorted."""
    return sorted(_METHODS)


def create(name: str, **settings: object) -> Method:
    """Returns the method called `name`, a Linen module not yet initialised.

    Args:
      name: one of `list_methods()`.
      **settings: fields of the method's class.

    Raises:
      UserError: for an unknown name or setting, with the nearest one.

    Examples:
      >>> create("kd", temperature=4.0).temperature
      4.0
    """
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name](**checked_arguments(_METHODS[name], settings, f"method '{name}'"))

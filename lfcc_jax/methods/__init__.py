"""Distillation methods, one a file. A run adds up any number of them, each with a weight."""

from lfcc_jax.errors import UserError, checked_arguments, unknown
from lfcc_jax.methods.at import AT
from lfcc_jax.methods.cc import CC
from lfcc_jax.methods.crd import CRD
from lfcc_jax.methods.crd_bank import CRDBank
from lfcc_jax.methods.cross_entropy import CrossEntropy
from lfcc_jax.methods.dist import DIST
from lfcc_jax.methods.dkd import DKD
from lfcc_jax.methods.fitnet import FitNet
from lfcc_jax.methods.hcl import HCL
from lfcc_jax.methods.kd import KD
from lfcc_jax.methods.lfcc import LFCC
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, teach
from lfcc_jax.methods.nst import NST
from lfcc_jax.methods.ofa import OFA
from lfcc_jax.methods.pkt import PKT
from lfcc_jax.methods.rkd import RKD
from lfcc_jax.methods.sp import SP
from lfcc_jax.methods.srrl import SRRL
from lfcc_jax.methods.ttm import TTM
from lfcc_jax.methods.vid import VID
from lfcc_jax.methods.wttm import WTTM

__all__ = ["Batch", "Method", "TeacherOutput", "create", "list_methods", "teach"]

_METHODS = {
    "at": AT,
    "cc": CC,
    "crd": CRD,
    "crd_bank": CRDBank,
    "cross_entropy": CrossEntropy,
    "dist": DIST,
    "dkd": DKD,
    "fitnet": FitNet,
    "hcl": HCL,
    "kd": KD,
    "lfcc": LFCC,
    "nst": NST,
    "ofa": OFA,
    "pkt": PKT,
    "rkd": RKD,
    "sp": SP,
    "srrl": SRRL,
    "ttm": TTM,
    "vid": VID,
    "wttm": WTTM,
}

# Settings that make sense in a range alone, whatever the method.
_ABOVE_ZERO = ("draws", "exponent", "grids", "temperature", "width")
_SHARES = ("label_smoothing", "momentum")


def list_methods() -> list[str]:
    """Returns the names that `create` takes, sorted."""
    return sorted(_METHODS)


def create(name: str, **settings: object) -> Method:
    """Returns the method called `name`, a Linen module not yet initialised.

    Args:
      name: one of `list_methods()`.
      **settings: fields of the method's class.

    Raises:
      UserError: for an unknown name or setting, with the nearest one, or a value that makes no sense.

    Examples:
      >>> create("kd", temperature=4.0).temperature
      4.0
    """
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    method = _METHODS[name](**checked_arguments(_METHODS[name], settings, f"config.losses.{name}"))
    for setting in settings:
        value = settings[setting]
        if setting in _ABOVE_ZERO and not min(value if isinstance(value, (tuple, list)) else (value,), default=0) > 0:
            raise UserError(f"config.losses.{name}.{setting}: {value} will not do; it must be above zero")
        if setting in _SHARES and not 0 <= value < 1:
            raise UserError(f"config.losses.{name}.{setting}: {value} is not in [0, 1)")
        if setting == "stages" and (not value or len(set(value)) < len(value)):
            raise UserError(f"config.losses.{name}.stages: {value} will not do; it takes one or more, each once")
    return method

"""Distillation methods, one a file. A run adds up any number of them, each with a weight."""

from lfcc_jax.arguments import checked_arguments
from lfcc_jax.errors import unknown
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

__all__ = ["METHODS", "Batch", "Method", "TeacherOutput", "create", "list_methods", "teach"]

METHODS = {
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


def list_methods() -> list[str]:
    """Returns the names that `create` takes, sorted."""
    return sorted(METHODS)


def create(name: str, **settings: object) -> Method:
    """Returns the method called `name`, a Linen module that is not initialized yet.

    Args:
      name: One of `list_methods()`.
      **settings: Fields of the method's class.

    Raises:
      UserError: if the name or a setting is unknown (with the nearest one), or a value is out of bounds.

    Examples:
      >>> create("kd", temperature=4.0).temperature
      4.0
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name](**checked_arguments(METHODS[name], settings, f"config.losses.{name}"))

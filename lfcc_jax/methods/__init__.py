"""Distillation methods, grouped like `lfcc_jax.losses`. A run trains on a weighted sum of any of them."""

from lfcc_jax.arguments import checked_arguments
from lfcc_jax.errors import unknown
from lfcc_jax.methods.contrastive import CRD, CRDBank
from lfcc_jax.methods.features import AT, HCL, NST, SRRL, VID, DualView, FitNet, Regression
from lfcc_jax.methods.lfcc import LFCC
from lfcc_jax.methods.logits import DIST, DKD, KD, RLD, TTM, WTTM, CrossEntropy
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, teach, teach_in_parts, teach_shapes
from lfcc_jax.methods.ofa import OFA
from lfcc_jax.methods.queue import Queue
from lfcc_jax.methods.redundancy import RSD
from lfcc_jax.methods.relations import CC, PKT, RKD, SP

__all__ = [
    "METHODS",
    "Batch",
    "Method",
    "TeacherOutput",
    "create",
    "list_methods",
    "teach",
    "teach_in_parts",
    "teach_shapes",
]

METHODS = {
    "at": AT,
    "cc": CC,
    "crd": CRD,
    "crd_bank": CRDBank,
    "cross_entropy": CrossEntropy,
    "dist": DIST,
    "dkd": DKD,
    "dual_view": DualView,
    "fitnet": FitNet,
    "hcl": HCL,
    "kd": KD,
    "lfcc": LFCC,
    "nst": NST,
    "ofa": OFA,
    "pkt": PKT,
    "queue": Queue,
    "regression": Regression,
    "rkd": RKD,
    "rld": RLD,
    "rsd": RSD,
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
    """Returns the method called `name`, an uninitialized Linen module.

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

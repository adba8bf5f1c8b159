"""The benchmark's methods by name, each as the `losses` block of a config.

The first ten have the weights of One-for-All's benchmark (Hao et al., 2023), the others those that are usual on
CIFAR-100, or those of the authors. Those of `queue_kd` and of RSD with other losses are untuned: LightlyTrain trains
without labels, and RSD's authors add it to the cross-entropy alone. A config states only what differs in its setting.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lfcc_jax import methods, models
from lfcc_jax.errors import unknown

Block = dict[str, Any]

_KD = {"weight": 1.0, "temperature": 1.0}
_DIST = {"weight": 1.0, "temperature": 1.0}
_FITNET = {"weight": 1.0}
_CRD = {"weight": 0.8}
_RSD = {"weight": 0.1}
_LFCC = {
    "weight": 1.0,
    "kind": "box",
    "grids": (1, 2, 4),
    "stages": ("stage1", "stage2", "stage3", "stage4"),
    "width": 128,
    "projector": "both",
    "temperature": 0.1,
    "negatives": "teacher",
    "standardize": True,
}
_CROSS_ENTROPY = {"weight": 1.0, "label_smoothing": 0.1}
# The losses of each method, in addition to the cross-entropy.
_METHODS: dict[str, dict[str, Block]] = {
    "scratch": {},
    "kd": {"kd": _KD},
    "dkd": {"dkd": {"weight": 1.0, "alpha": 1.0, "beta": 2.0, "temperature": 1.0}},
    "dist": {"dist": _DIST},
    "ofa": {"ofa": {"weight": 1.0, "exponent": 1.0, "exit_weight": 1.0}},
    "fitnet": {"fitnet": _FITNET},
    "cc": {"cc": {"weight": 0.02}},
    "rkd": {"rkd": {"weight": 1.0}},
    "crd_bank": {"crd_bank": {"weight": 1.0, "num_negatives": 16384, "temperature": 0.07}},
    "lfcc": {"kd": _KD, "lfcc": _LFCC},
    "lfcc_dist": {"dist": _DIST, "lfcc": _LFCC},
    "fitnet_kd": {"fitnet": _FITNET, "kd": _KD},
    "fitnet_dist": {"fitnet": _FITNET, "dist": _DIST},
    "crd": {"crd": _CRD},
    "crd_kd": {"crd": _CRD, "kd": _KD},
    "kd_standardized": {
        "cross_entropy": {"weight": 0.1},
        "kd": {"weight": 9.0, "temperature": 2.0, "standardize": True},
    },
    "ttm": {"ttm": {"weight": 45.0}},
    "wttm": {"wttm": {"weight": 1.0}},
    "at": {"at": {"weight": 1000.0}},
    "sp": {"sp": {"weight": 3000.0}},
    "pkt": {"pkt": {"weight": 30000.0}},
    "nst": {"nst": {"weight": 50.0}},
    "vid": {"vid": {"weight": 1.0}},
    "hcl": {"hcl": {"weight": {"name": "linear", "start": 0.0, "end": 5.0, "epochs": 20.0}}},
    "srrl_kd": {"srrl": {"weight": 1.0}, "kd": _KD},
    "rsd": {"rsd": _RSD},
    "rsd_kd": {"rsd": _RSD, "kd": _KD},
    "dist_rsd": {"dist": _DIST, "rsd": _RSD},
    "lfcc_rsd": {"kd": _KD, "lfcc": _LFCC, "rsd": _RSD},
    "lfcc_dist_rsd": {"dist": _DIST, "lfcc": _LFCC, "rsd": _RSD},
    "queue_kd": {"queue": {"weight": 1.0}, "kd": _KD},
    "dual_view_kd": {
        "cross_entropy": {"weight": 0.5},
        "dual_view": {"weight": 1.0},
        "kd": {"weight": 0.5, "temperature": 1.0},
    },
    "rld": {"rld": {"weight": 1.0, "beta": 2.0, "temperature": 1.0}},
}


def with_all_methods(presets: Mapping[str, Mapping[str, Block]]) -> dict[str, Mapping[str, Block]]:
    """Returns the presets, and one of weight 1 for every registered method that is in none of them."""
    used = {"cross_entropy", *(loss for blocks in presets.values() for loss in blocks)}
    return {**presets, **{name: {name: {"weight": 1.0}} for name in methods.list_methods() if name not in used}}


_PRESETS = with_all_methods(_METHODS)
METHODS = tuple(_PRESETS)


def losses(name: str, student: str, changes: Mapping[str, Block] = MappingProxyType({})) -> dict[str, Block]:
    """Returns the `losses` block of a method, with the cross-entropy.

    Args:
      name: One of `METHODS`.
      student: Name of the student, whose family selects the branch of OFA's exits.
      changes: Settings that differ from the preset, by loss. Losses that the method does not have are ignored.

    Raises:
      UserError: if the method or the student is unknown, with the nearest name.

    Examples:
      >>> losses("kd", "resnet18", {"kd": {"temperature": 4.0}})["kd"]
      {'weight': 1.0, 'temperature': 4.0}
    """
    if name not in _PRESETS:
        raise unknown("method", name, METHODS)
    blocks = dict(_PRESETS[name])
    blocks = {"cross_entropy": _CROSS_ENTROPY | blocks.pop("cross_entropy", {}), **blocks}
    if "ofa" in blocks:
        branch = "convolution" if models.family(student) == "cnn" else "attention"
        blocks["ofa"] = blocks["ofa"] | {"branch": branch}
    return {loss: block | changes.get(loss, {}) for loss, block in blocks.items()}

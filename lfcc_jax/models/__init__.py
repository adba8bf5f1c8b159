"""The zoo: one network family a file, a registry of named variants, and trained networks on disk."""

from lfcc_jax.models.network import FeatureInfo, Network, Output
from lfcc_jax.models.registry import configured, create, full_name, list_models
from lfcc_jax.models.saved import describe, fingerprint, load, load_variables, save

__all__ = [
    "FeatureInfo",
    "Network",
    "Output",
    "configured",
    "create",
    "describe",
    "fingerprint",
    "full_name",
    "list_models",
    "load",
    "load_variables",
    "save",
]

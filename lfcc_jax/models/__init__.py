"""Networks: one file per architecture, a registry of names, and saved networks."""

from lfcc_jax.models import adapters
from lfcc_jax.models.adapters import Adapter
from lfcc_jax.models.network import FeatureInfo, Network, Output, Variant
from lfcc_jax.models.registry import configured, create, family, full_name, list_models, variant
from lfcc_jax.models.saved import describe, fingerprint, load, load_variables, save

__all__ = [
    "Adapter",
    "FeatureInfo",
    "Network",
    "Output",
    "Variant",
    "adapters",
    "configured",
    "create",
    "describe",
    "family",
    "fingerprint",
    "full_name",
    "list_models",
    "load",
    "load_variables",
    "save",
    "variant",
]

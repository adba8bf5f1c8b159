"""The demo's config: see `lfcc_jax/default_config.py`, which is installed with the package."""

from lfcc_jax.default_config import METHODS, RIVALS, get_config

__all__ = ["METHODS", "RIVALS", "get_config"]

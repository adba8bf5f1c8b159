"""The config of the demo, from `lfcc_jax/default_config.py`."""

from lfcc_jax.default_config import METHODS, get_config

__all__ = ["METHODS", "get_config"]

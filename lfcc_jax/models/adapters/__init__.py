"""Networks of other libraries as teachers and students: Flax Linen and NNX, Equinox, Keras, plain functions."""

from lfcc_jax.models.adapters.adapter import Adapter
from lfcc_jax.models.adapters.equinox import from_equinox
from lfcc_jax.models.adapters.factory import adapt, check_factory, from_factory, full_factory_name, user_code_error
from lfcc_jax.models.adapters.function import from_function
from lfcc_jax.models.adapters.keras import from_keras
from lfcc_jax.models.adapters.linen import from_linen
from lfcc_jax.models.adapters.nnx import from_nnx

__all__ = [
    "Adapter",
    "adapt",
    "check_factory",
    "from_equinox",
    "from_factory",
    "from_function",
    "from_keras",
    "from_linen",
    "from_nnx",
    "full_factory_name",
    "user_code_error",
]

"""Plain functions with a pytree of parameters."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lfcc_jax.errors import UserError
from lfcc_jax.models.adapters.adapter import Adapter, Variables, flat, mode, named_arrays, nested, seeded


def from_function(
    function: Callable[..., Any], params: Any, *, init: Callable[[jax.Array], Any] | None = None, **settings: Any
) -> Adapter:
    """Returns `function(params, images)` as a network.

    `train` is passed to functions that take it, and the key of dropout as `key`.

    Args:
      function: Pure function. It may return whatever `Adapter` describes.
      params: Any pytree of arrays, of which floats are trained.
      init: Returns random parameters from a key, instead of `params`, which must then be None.
      **settings: As in `Adapter`.

    Examples:
      >>> network = from_function(lambda params, x: x.mean((1, 2)) @ params, jnp.zeros((3, 5)))
      >>> network.for_data(5, 8, 3).output_shapes().logits.shape
      (1, 5)
    """
    if params is None:
        return seeded(lambda key: _Function(function, init(key), settings))
    params = jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), params)
    return _Function(function, params, settings)


class _Function(Adapter):
    def __init__(self, function: Callable[..., Any], params: Any, settings: dict[str, Any]):
        self._function, self._mode = function, mode(function)
        self._takes_key = "key" in inspect.signature(function).parameters
        self._names, self._structure = list(named_arrays(params)), jax.tree.structure(params)
        super().__init__(getattr(function, "__name__", type(function).__name__), split_arrays(params), **settings)

    def run(
        self, variables: Variables, images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array], Variables]:
        """Runs the function; see `Adapter.run`."""
        params = joined_arrays(variables, self._names, self._structure)
        outputs = self._function(params, images, **self._mode(train), **({"key": key} if self._takes_key else {}))
        return outputs, {}, variables


def split_arrays(tree: Any) -> Variables:
    """Returns the arrays of a pytree: floats in `params`, others in `constants`."""
    params, constants = {}, {}
    for name, x in named_arrays(tree).items():
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            raise UserError(f"'{name}' must not be a JAX key, which cannot be saved; the run passes `key` to the call")
        (params if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else constants)[name] = x
    return {"params": nested(params)} | ({"constants": nested(constants)} if constants else {})


def joined_arrays(variables: Variables, names: list[str], structure: Any) -> Any:
    """Returns the pytree that `split_arrays` split."""
    arrays = flat(variables.get("constants", {})) | flat(variables["params"])
    return jax.tree.unflatten(structure, [arrays[name] for name in names])

"""Flax NNX modules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lfcc_jax.errors import UserError
from lfcc_jax.models.adapters.adapter import Adapter, Variables, flat, mode, nested, seeded


def from_nnx(module: nnx.Module | Callable[[nnx.Rngs], nnx.Module], **settings: Any) -> Adapter:
    """Returns a Flax NNX module as a network.

    Its `Param`s are trained; all other variables (`BatchStat`) are collections. Keys of dropout are those of the run.
    `module.train()` and `module.eval()` set the mode; `train` or `deterministic` is passed to modules that take it.
    Features that the module stores with `sow(nnx.Intermediate, name, x)` get the name after the path of the submodule,
    as in "blocks/2/map". With `features`, outputs of submodules have names too: their paths.

    Args:
      module: The module with its weights; or a function that creates it from `nnx.Rngs`, to be initialized by the run.
      **settings: As in `Adapter`.

    Examples:
      >>> network = from_nnx(lambda rngs: nnx.Linear(3, 5, rngs=rngs))
      >>> network.for_data(5, 8, 3).variable_shapes()["params"]["bias"].shape
      (5,)
    """
    if isinstance(module, nnx.Module):
        return _NNX(module, settings)
    return seeded(lambda key: _NNX(module(nnx.Rngs(key)), settings))


class _NNX(Adapter):
    def __init__(self, module: nnx.Module, settings: dict[str, Any]):
        for path, value in nnx.iter_graph(module):
            if isinstance(value, jax.Array):
                name = "/".join(map(str, path))
                raise UserError(
                    f"'{name}' of {type(module).__name__} must be an nnx.Variable or nnx.Param, got an array"
                )
        self._graph, state = nnx.split(module)
        arrays, self._structure = jax.tree.flatten(state)
        variables = nnx.to_flat_state(state)
        if len(arrays) != len(variables):
            raise UserError(f"network '{type(module).__name__}': each of its NNX variables must hold one array")
        # For each variable its path, and its collection, or None for the state of a random stream.
        self._rows = [("/".join(map(str, path)), _collection(type(variable))) for path, variable in variables]
        self._types = [jax.typeof(x) for x in arrays]
        self._mode = mode(module.__call__)
        super().__init__(type(module).__name__, self._collections(arrays), **settings)

    def _collections(self, arrays: list[Any]) -> Variables:
        found: dict[str, dict[str, Any]] = {"params": {}}
        for (path, collection), array in zip(self._rows, arrays, strict=True):
            if collection is not None:
                found.setdefault(collection, {})[path] = array
        return {name: nested(values) for name, values in found.items()}

    def run(
        self, variables: Variables, images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array], Variables]:
        """Runs the module; see `Adapter.run`."""
        values = {name: flat(collection) for name, collection in variables.items()}
        arrays = [
            _stream(self._types[i], jax.random.fold_in(key, i)) if collection is None else values[collection][path]
            for i, (path, collection) in enumerate(self._rows)
        ]
        module = nnx.merge(self._graph, jax.tree.unflatten(self._structure, arrays))
        module.train() if train else module.eval()
        # Outputs of submodules are stored only if needed, since that changes their classes.
        outputs_of_methods = nnx.Intermediate if self.features is not None else None
        outputs, stored = nnx.capture(module, nnx.Intermediate, method_outputs=outputs_of_methods)(
            images, **self._mode(train)
        )
        state = nnx.state(module)
        if jax.tree.structure(state) != self._structure:
            raise UserError(f"network '{self.name}' must not create variables when it is called")
        return outputs, _stored(stored), self._collections(jax.tree.leaves(state))


def _collection(kind: type[nnx.Variable]) -> str | None:
    if issubclass(kind, nnx.RngState):
        return None
    if issubclass(kind, nnx.Param):
        return "params"
    return "batch_stats" if issubclass(kind, nnx.BatchStat) else kind.__name__


def _stream(like: jax.core.ShapedArray, key: jax.Array) -> jax.Array:
    """Returns the state of a random stream: its key, or its count."""
    if not jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jnp.zeros(like.shape, like.dtype)
    return jax.random.split(key, like.shape) if like.shape else key


def _stored(state: Any) -> dict[str, jax.Array]:
    """Returns what modules stored, by path. A submodule called several times has the last output."""
    found = {}
    for path, variable in nnx.to_flat_state(state):
        name = "/".join(map(str, path)).removesuffix("__call__").rstrip("/")
        value = variable.get_value()
        value = value[-1] if isinstance(value, tuple) else value
        if name and hasattr(value, "shape"):
            found[name] = value
    return found

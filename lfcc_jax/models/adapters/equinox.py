"""Equinox modules."""

import inspect
from typing import TYPE_CHECKING, Any

import jax

from lfcc_jax.models.adapters.adapter import Adapter, Variables, flat, named_arrays, nested, seeded
from lfcc_jax.models.adapters.function import joined_arrays, split_arrays

if TYPE_CHECKING:
    import equinox as eqx


def from_equinox(module: Any, state: Any = None, *, channels_first: bool = True, **settings: Any) -> Adapter:
    """Returns an Equinox module as a network.

    Equinox modules map one image, usually `[channels, height, width]`, so they are mapped over the batch, with the
    axis name "batch" (that of `eqx.nn.BatchNorm`). `eqx.nn.inference_mode` sets the mode; the key of dropout is passed
    to modules that take `key`, and the state to those that come with one. Floating-point arrays are trained.

    Args:
      module: The module with its weights; or a function that creates it from a key, or it and its state
        (`lambda key: eqx.nn.make_with_state(Net)(key)`), to be initialized by the run.
      state: The `eqx.nn.State` of a module with BatchNorm.
      channels_first: As in `Adapter`.
      **settings: As in `Adapter`.
    """
    import equinox as eqx

    settings = {"channels_first": channels_first} | settings
    if isinstance(module, eqx.Module):
        return _Equinox(module, state, settings)

    def make(key: jax.Array) -> Adapter:
        made = module(key)
        return _Equinox(*made, settings) if isinstance(made, tuple) else _Equinox(made, None, settings)

    return seeded(make)


class _Equinox(Adapter):
    def __init__(self, module: "eqx.Module", state: Any, settings: dict[str, Any]):
        import equinox as eqx

        arrays, self._static = eqx.partition(module, eqx.is_array)
        self._names, self._structure = list(named_arrays(arrays)), jax.tree.structure(arrays)
        self._state = None if state is None else (list(named_arrays(state)), jax.tree.structure(state))
        self._takes_key = "key" in inspect.signature(type(module).__call__).parameters
        weights = split_arrays(arrays)
        if state is not None:
            weights["state"] = nested(named_arrays(state))
        super().__init__(type(module).__name__, weights, **settings)

    def run(
        self, variables: Variables, images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array], Variables]:
        """Runs the module on each image; see `Adapter.run`."""
        import equinox as eqx

        module = eqx.combine(joined_arrays(variables, self._names, self._structure), self._static)
        module = eqx.nn.inference_mode(module, value=not train)
        keys = jax.random.split(key, images.shape[0])
        state = ()
        if self._state is not None:
            names, structure = self._state
            arrays = flat(variables["state"])
            state = (jax.tree.unflatten(structure, [arrays[name] for name in names]),)

        def one(image: jax.Array, key: jax.Array, *state: Any) -> tuple[Any, Any]:
            outputs = module(image, *state, **({"key": key} if self._takes_key else {}))
            return outputs if state else (outputs, ())

        axes = (0, 0, *(None for _ in state))
        outputs, state = jax.vmap(one, in_axes=axes, out_axes=(0, None), axis_name="batch")(images, keys, *state)
        collections = variables if self._state is None else variables | {"state": nested(named_arrays(state))}
        return outputs, {}, collections

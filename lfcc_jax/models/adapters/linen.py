"""Flax Linen modules that are not a `Network`."""

from typing import Any

import flax.linen as nn
import jax

from lfcc_jax.models.adapters.adapter import Adapter, Variables, flat, mode


def from_linen(module: nn.Module, variables: Variables | None = None, **settings: Any) -> Adapter:
    """Returns a Flax Linen module as a network.

    `train` or `deterministic` is passed to modules that take it, and the key of dropout as `rngs={"dropout": key}`.
    Features that the module stores with `sow("intermediates", name, x)` get the name after the path of the submodule,
    as in "Block_2/map". With `features`, outputs of submodules have names too: their paths.

    Args:
      module: The module.
      variables: Its variables; initialized by the run if None.
      **settings: As in `Adapter`.

    Examples:
      >>> network = from_linen(nn.Dense(5))
      >>> network.for_data(5, 8, 3).variable_shapes()["params"]["bias"].shape
      (5,)
    """
    network = _Linen(module, variables, settings)
    return network if variables is not None else network.created_by(network.create)


class _Linen(Adapter):
    def __init__(self, module: nn.Module, variables: Variables | None, settings: dict[str, Any]):
        self._module, self._mode = module, mode(type(module).__call__)
        super().__init__(type(module).__name__, variables, **settings)

    def create(self, key: jax.Array, images: jax.Array) -> Variables:
        """Returns random variables."""
        names = ("params", "dropout")
        keys = dict(zip(names, jax.random.split(key), strict=True))
        variables = self._module.init(keys, self._prepared(images), **self._mode(False))
        return {"params": {}} | {name: x for name, x in variables.items() if name != "intermediates"}

    def run(
        self, variables: Variables, images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array], Variables]:
        """Runs the module; see `Adapter.run`."""
        wanted = set() if self.features is None else set(self.features.values())
        outputs, collections = self._module.apply(
            variables,
            images,
            **self._mode(train),
            rngs={"dropout": key},
            mutable=[*(name for name in variables if name != "params"), "intermediates"],
            capture_intermediates=lambda module, method: method == "__call__" and "/".join(module.path) in wanted,
        )
        stored = flat(collections.pop("intermediates", {}))
        stored = {name.removesuffix("/__call__"): x[-1] if isinstance(x, tuple) else x for name, x in stored.items()}
        return outputs, stored, collections

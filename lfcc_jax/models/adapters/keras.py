"""Keras 3 models on the JAX backend."""

import re
from typing import Any

import jax

from lfcc_jax.errors import UserError
from lfcc_jax.models.adapters.adapter import Adapter, Variables, flat, nested


def from_keras(model: Any, **settings: Any) -> Adapter:
    """Returns a Keras model as a network, with the weights that it has.

    Keras must run on JAX: set `KERAS_BACKEND=jax` before importing it. Trainable variables are trained; the others
    (BatchNorm's statistics, seeds of dropout) are a collection. With `features`, the outputs of a functional model's
    layers have the layers' names, and KerasHub's backbones have `pyramid_outputs`, called "P2" to "P5".

    Args:
      model: A built model whose first input is the images.
      **settings: As in `Adapter`.

    Raises:
      UserError: if Keras runs on another backend, or the model is not built.
    """
    import keras

    if keras.backend.backend() != "jax":
        raise UserError(
            f"network '{model.name}': Keras must run on JAX, got {keras.backend.backend()}; set KERAS_BACKEND=jax "
            "before Keras is imported"
        )
    if not model.built:
        raise UserError(f"network '{model.name}' must be built: call it once on images, or give it an input shape")
    return _Keras(model, settings)


class _Keras(Adapter):
    def __init__(self, model: Any, settings: dict[str, Any]):
        super().__init__(_without_numbers(model.name), None, **settings)
        self._model = model = model if self.features is None else self._with_features(model)
        self._trained, self._others = _paths(model.trainable_variables), _paths(model.non_trainable_variables)
        self.weights = {"params": _arrays(self._trained, model.trainable_variables)}
        if self._others:
            self.weights["non_trainable"] = _arrays(self._others, model.non_trainable_variables)

    def _with_features(self, model: Any) -> Any:
        """Returns a model that returns the features too."""
        import keras

        known = {layer.name: layer.output for layer in model.layers} | dict(getattr(model, "pyramid_outputs", {}))
        wanted = set(self.features.values())
        features = {name: x for name, x in known.items() if name in wanted}
        if self.has_logits:
            return keras.Model(model.inputs, (model.outputs[0], features))
        return keras.Model(model.inputs, features)

    def run(
        self, variables: Variables, images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array], Variables]:
        """Runs the model; see `Adapter.run`."""
        trained, others = flat(variables["params"]), flat(variables.get("non_trainable", {}))
        outputs, others = self._model.stateless_call(
            [trained[path] for path in self._trained], [others[path] for path in self._others], images, training=train
        )
        collections = {"params": variables["params"]}
        if self._others:
            collections["non_trainable"] = nested(dict(zip(self._others, others, strict=True)))
        return outputs, {}, collections


def _without_numbers(path: str) -> str:
    return re.sub(r"_\d+(?=/|$)", "", path)


def _paths(variables: list[Any]) -> list[str]:
    """Returns a distinct path for each variable.

    Keras numbers the layers of all models of a process, so its own paths differ from process to process.
    """
    paths: list[str] = []
    for variable in variables:
        name = _without_numbers(variable.path)
        path, number = name, 1
        while path in paths:
            path, number = f"{name}_{number}", number + 1
        paths.append(path)
    return paths


def _arrays(paths: list[str], variables: list[Any]) -> Variables:
    return nested({path: variable.value for path, variable in zip(paths, variables, strict=True)})

"""Metrics of the training steps since the last row of `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import numpy as np


class StepMetrics:
    """Collects the metrics of each step, and averages them for the next row.

    Steps are dispatched ahead of the devices, so metrics stay there until `fetch`.

    Args:
      values: Values of each metric, in the order of steps: the `state` from the checkpoint of a resumed run.
    """

    def __init__(self, values: Mapping[str, Sequence[float]] = MappingProxyType({})):
        self._values = {name: np.asarray(steps, np.float32) for name, steps in values.items()}
        self._pending: list[tuple[dict[str, jax.Array], int]] = []

    @property
    def state(self) -> dict[str, list[float]]:
        """The fetched values, as JSON."""
        return {name: values.tolist() for name, values in self._values.items()}

    def add(self, metrics: dict[str, jax.Array], count: int) -> None:
        """Adds the metrics of one step, scalars, or of several: the first `count` entries of arrays."""
        self._pending.append((metrics, count))

    def fetch(self) -> dict[str, np.ndarray]:
        """Waits for the devices. Returns the metrics added since the last call, `[steps]` each."""
        parts = [
            {name: np.atleast_1d(values)[:count] for name, values in metrics.items()}
            for metrics, count in jax.device_get(self._pending)
        ]
        new = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        old = self._values or {name: values[:0] for name, values in new.items()}
        self._values = {name: np.concatenate([old[name], new[name]]) for name in new}
        self._pending = []
        return new

    def take_means(self) -> dict[str, float]:
        """Returns the mean of each fetched metric over the steps, and resets them."""
        means = {name: float(np.mean(values)) for name, values in self._values.items()}
        self._values = {}
        return means


def first_not_finite(values: Mapping[str, np.ndarray]) -> tuple[int, dict[str, float]] | None:
    """Returns the index of the first step with a NaN or infinite metric, and those metrics; None if all are finite."""
    finite = np.all([np.isfinite(steps) for steps in values.values()], axis=0)
    if finite.all():
        return None
    first = int(np.argmin(finite))
    return first, {name: float(v[first]) for name, v in values.items() if not np.isfinite(v[first])}

"""Numbers that change as training goes on: learning rates and loss weights, by the same few schedules."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from lfcc_jax.errors import UserError, checked_arguments, unknown

Schedule = Callable[[Any], Any]


def create(spec: float | Mapping[str, Any], *, steps_per_epoch: int, total_steps: int, where: str) -> Schedule:
    """Returns the schedule that a config value describes: a function of the step.

    Args:
      spec: a number, which stays what it is; or a block with a `name` (`constant`, `linear`, `cosine`, `step`) and the
        keyword arguments of the function of that name below. Durations are in epochs.
      steps_per_epoch: what an epoch is.
      total_steps: length of the run.
      where: where the value stands, for messages.

    Raises:
      UserError: for an unknown schedule or key, with the nearest one, or what is no number.

    Examples:
      >>> rate = create({"name": "cosine", "peak": 1.0}, steps_per_epoch=10, total_steps=100, where="here")
      >>> [round(float(rate(step)), 3) for step in (0, 50, 100)]
      [1.0, 0.5, 0.0]
    """
    if not isinstance(spec, Mapping):
        if isinstance(spec, bool) or not isinstance(spec, numbers.Real) or not math.isfinite(spec):
            raise UserError(f"{where}: {spec!r} will not do; a number, or a block with a name: {', '.join(_SCHEDULES)}")
        return optax.constant_schedule(float(spec))
    name = spec.get("name")
    if not isinstance(name, str) or name not in _SCHEDULES:
        raise unknown("schedule", name, _SCHEDULES, where)
    given = {key: value for key, value in spec.items() if key != "name"}
    given |= {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    checked_arguments(_SCHEDULES[name], given, f"{where} (schedule '{name}')")
    for key, least in (("every_epochs", 1 / max(steps_per_epoch, 1)), ("epochs", 0), ("warmup_epochs", 0)):
        if key in given and not given[key] >= least:
            raise UserError(f"{where}.{key}: {given[key]} will not do; at least {least:g} will")
    return _SCHEDULES[name](**given)


def linear(start: float, end: float, epochs: float, *, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Goes from `start` to `end` in `epochs` epochs and stays there."""
    del total_steps
    return optax.linear_schedule(start, end, max(1, round(epochs * steps_per_epoch)))


def cosine(
    peak: float,
    final: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_start: float = 0.0,
    by_epoch: bool = False,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> Schedule:
    """Falls from `peak` to `final` along half a cosine over the whole run (Loshchilov and Hutter, SGDR, 2017).

    During the warm-up it is a straight line from `warmup_start` to `peak` instead. The cosine does not wait for the
    warm-up to end: it runs from step 0, as in timm. With `by_epoch` it only changes where an epoch begins, also as in
    timm.
    """

    def schedule(step: Any) -> Any:
        return final + 0.5 * (peak - final) * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total_steps, 1.0)))

    schedule = _warm_up(schedule, peak, warmup_epochs * steps_per_epoch, warmup_start)
    return _by_epoch(schedule, steps_per_epoch) if by_epoch else schedule


def step(
    peak: float,
    every_epochs: float,
    factor: float = 0.1,
    warmup_epochs: float = 0.0,
    warmup_start: float = 0.0,
    by_epoch: bool = False,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> Schedule:
    """Starts at `peak`, times `factor` after every `every_epochs` epochs; warm-up and `by_epoch` as in `cosine`."""
    del total_steps

    def schedule(step: Any) -> Any:
        return peak * factor ** jnp.floor(step / (every_epochs * steps_per_epoch))

    schedule = _warm_up(schedule, peak, warmup_epochs * steps_per_epoch, warmup_start)
    return _by_epoch(schedule, steps_per_epoch) if by_epoch else schedule


def _by_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    return lambda step: schedule(step // steps_per_epoch * steps_per_epoch)


def _warm_up(schedule: Schedule, peak: float, steps: float, start: float) -> Schedule:
    if not steps:
        return schedule
    return lambda step: jnp.where(step < steps, start + (peak - start) * step / steps, schedule(step))


def _constant(value: float, *, steps_per_epoch: int, total_steps: int) -> Schedule:
    del steps_per_epoch, total_steps
    return optax.constant_schedule(value)


_SCHEDULES = {"constant": _constant, "cosine": cosine, "linear": linear, "step": step}

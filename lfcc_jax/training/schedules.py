"""Schedules: learning rates and loss weights as functions of the step."""

import numbers
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import optax

from lfcc_jax.arguments import AtMost, Fraction, NonNegative, Positive, check_value, checked_arguments
from lfcc_jax.errors import UserError, unknown

Schedule = Callable[[Any], Any]
# Steps are int32 in compiled programs.
_LAST_STEP = 2**31 - 1
Value = Annotated[float, NonNegative]
Spec = Value | Mapping[str, Any]
Epochs = Annotated[float, NonNegative, AtMost(10**6)]


def create(spec: Spec, *, steps_per_epoch: int, total_steps: int, where: str) -> Schedule:
    """Returns the schedule that a config value describes: a function of the step.

    Durations in epochs are rounded to whole steps, and compared with the step as integers. So a value changes at the
    same step whether the schedule is compiled or not, which floating-point division does not guarantee.

    Args:
      spec: A number, for a constant; or a block with a `name` (`constant`, `linear`, `cosine`, `step`) and the keyword
        arguments of that function below. Durations are in epochs.
      steps_per_epoch: Number of steps in an epoch.
      total_steps: Length of the run.
      where: Config key of the value, for error messages.

    Raises:
      UserError: if the schedule or a key is unknown (with the nearest one), a value is out of bounds, or the warm-up is
        longer than the run.

    Examples:
      >>> rate = create({"name": "cosine", "peak": 1.0}, steps_per_epoch=10, total_steps=100, where="here")
      >>> [round(float(rate(step)), 3) for step in (0, 50, 100)]
      [1.0, 0.5, 0.0]
    """
    check_value(spec, Spec, where)
    if isinstance(spec, numbers.Real):
        return optax.constant_schedule(float(spec))
    name = spec.get("name")
    if not isinstance(name, str) or name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES, where)
    timing = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    arguments = checked_arguments(SCHEDULES[name], spec, where, timing, {"name": str})
    warmup = spec.get("warmup_epochs", 0)
    if _steps(warmup, steps_per_epoch) > total_steps:
        raise UserError(
            f"{where}.warmup_epochs must be at most the length of the run, {total_steps / steps_per_epoch:g} epochs, "
            f"got {warmup}"
        )
    return SCHEDULES[name](**arguments)


def constant(value: Value, *, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Stays at `value`."""
    del steps_per_epoch, total_steps
    return optax.constant_schedule(value)


def linear(start: Value, end: Value, epochs: Epochs, *, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Changes linearly from `start` to `end` over `epochs` epochs, then stays at `end`."""
    del total_steps
    return _ramp(start, end, max(1, _steps(epochs, steps_per_epoch)), lambda _: end)


def cosine(
    peak: Value,
    final: Value = 0.0,
    warmup_epochs: Epochs = 0.0,
    warmup_start: Value = 0.0,
    by_epoch: bool = False,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> Schedule:
    """Decays from `peak` to `final` along half a cosine over the whole run (Loshchilov and Hutter, SGDR, 2017).

    The linear warm-up from `warmup_start` to `peak` replaces the beginning of the cosine, which starts at step 0, as in
    timm. With `by_epoch` the value only changes at the beginning of an epoch, also as in timm.
    """

    def schedule(step: Any) -> Any:
        return final + 0.5 * (peak - final) * (1 + jnp.cos(jnp.pi * jnp.minimum(step, total_steps) / total_steps))

    schedule = _ramp(warmup_start, peak, _steps(warmup_epochs, steps_per_epoch), schedule)
    return _by_epoch(schedule, steps_per_epoch) if by_epoch else schedule


def step(
    peak: Value,
    every_epochs: Annotated[float, Positive, AtMost(10**6)],
    factor: Annotated[float, Fraction] = 0.1,
    warmup_epochs: Epochs = 0.0,
    warmup_start: Value = 0.0,
    by_epoch: bool = False,
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> Schedule:
    """Multiplies `peak` by `factor` every `every_epochs` epochs; warm-up and `by_epoch` as in `cosine`."""
    del total_steps
    every = min(max(1, _steps(every_epochs, steps_per_epoch)), _LAST_STEP)

    def schedule(step: Any) -> Any:
        return peak * jnp.float32(factor) ** (step // every)

    schedule = _ramp(warmup_start, peak, _steps(warmup_epochs, steps_per_epoch), schedule)
    return _by_epoch(schedule, steps_per_epoch) if by_epoch else schedule


SCHEDULES = {"constant": constant, "cosine": cosine, "linear": linear, "step": step}


def _steps(epochs: float, steps_per_epoch: int) -> int:
    return round(epochs * steps_per_epoch)


def _by_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    return lambda step: schedule(step // steps_per_epoch * steps_per_epoch)


def _ramp(start: float, end: float, steps: int, then: Schedule) -> Schedule:
    """Changes linearly from `start` to `end` over `steps` steps, then follows another schedule."""
    if not steps:
        return then
    last = min(steps, _LAST_STEP)
    return lambda step: jnp.where(step < last, start + (end - start) * (step / float(steps)), then(step))

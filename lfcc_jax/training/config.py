"""Reads a run's config: every key is known and read, or it is an error before anything is computed."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections.config_dict import RequiredValueError

from lfcc_jax.arguments import AtMost, Between, HalfOpenFraction, Positive, check_value, checked_arguments
from lfcc_jax.errors import UserError

Block = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run. Each block is the keyword arguments of one function, which its line names.

    Attributes:
      data: of `lfcc_jax.data.open_inputs`.
      student: `name`, and what differs from that network's defaults, of `lfcc_jax.models.create`; and `checkpoint`, a
        work directory whose student this one starts as, with that one's number of classes. None if empty.
      losses: a block for each method: `weight` (a number, or a block for `training.schedules.create`), and the
        settings of `lfcc_jax.methods.create`. Weight 0 leaves the method out.
      optimizer: of `training.optimizer.create`, with `learning_rate` a number or a schedule.
      epochs: how long to train.
      batch_size: global, over all devices.
      teacher: like `student`; its `checkpoint` is the work directory of the run that trained it. No name, no teacher.
      seed: of weights, shuffle, augmentation and dropout.
      dtype: of the networks' computation, `float32` or `bfloat16`; weights and losses stay float32.
      ema_decay: of the moving average of the student's variables, which is then what is evaluated; 0 is none. It has no
        warm-up: after n steps, a share of ema_decay^n is still the initial weights.
      mesh: of `training.sharding.create_mesh`.
      log_every_steps: how often a progress line is printed.
      eval_every_epochs: how often the student is evaluated and saved; always at the end.
      checkpoint_every_steps: how often it is saved in between; 0 is not.
    """

    data: Block
    student: Block
    losses: dict[str, Block]
    optimizer: Block
    epochs: Annotated[float, Positive, AtMost(10**6)]
    batch_size: Annotated[int, Positive]
    teacher: Block = dataclasses.field(default_factory=dict)
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: Annotated[float, HalfOpenFraction] = 0.0
    mesh: Block = dataclasses.field(default_factory=dict)
    log_every_steps: Annotated[int, Between(1, 10**5)] = 50
    eval_every_epochs: Annotated[float, Positive, AtMost(10**6)] = 1.0
    checkpoint_every_steps: Annotated[int, Between(0, 10**9)] = 0


def read_config(config: Mapping[str, Any]) -> RunConfig:
    """Returns the run that an `ml_collections.ConfigDict`, or a plain dict, describes.

    Raises:
      UserError: if a key is unknown (with the nearest one) or missing, or a value has the wrong type or is out of
        bounds.
    """
    return RunConfig(**checked_arguments(RunConfig, as_dict(config), "config"))


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as plain dicts, with its references resolved.

    Raises:
      UserError: if it is neither a `ConfigDict` nor a dict, or a placeholder in it was not filled in.
    """
    if hasattr(config, "to_dict"):
        try:
            return config.to_dict()
        except RequiredValueError as error:
            raise UserError(f"config: a required value is missing: {error}") from error
    check_value(config, Mapping, "config")
    return dict(config)


def differences(first: Any, second: Any, prefix: str = "config") -> list[tuple[str, Any, Any]]:
    """Returns the values that differ between two nested dicts, as `(key, value in first, value in second)`.

    Examples:
      >>> differences({"seed": 0, "data": {"name": "a"}}, {"data": {"name": "b"}})
      [('config.data.name', 'a', 'b'), ('config.seed', 0, 'unset')]
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        pairs = [(key, first.get(key, "unset"), second.get(key, "unset")) for key in sorted(first.keys() | second)]
        return [found for key, a, b in pairs for found in differences(a, b, f"{prefix}.{key}" if prefix else key)]
    return [] if first == second else [(prefix, first, second)]

"""Reads a run's config: every key is known and read, or it is an error before anything is computed."""

import dataclasses
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lfcc_jax.errors import UserError, checked_arguments, unknown

Block = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run. Each block is the keyword arguments of one function, which its line names.

    Attributes:
      data: of `lfcc_jax.data.open_splits`.
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
    epochs: float
    batch_size: int
    teacher: Block = dataclasses.field(default_factory=dict)
    seed: int = 0
    dtype: str = "float32"
    ema_decay: float = 0.0
    mesh: Block = dataclasses.field(default_factory=dict)
    log_every_steps: int = 50
    eval_every_epochs: float = 1.0
    checkpoint_every_steps: int = 0


def read_config(config: Mapping[str, Any]) -> RunConfig:
    """Returns the run that an `ml_collections.ConfigDict`, or a plain dict, describes.

    Raises:
      UserError: for a key that is unknown (with the nearest one) or missing, or a value that makes no sense.
    """
    run = RunConfig(**checked_arguments(RunConfig, as_dict(config), "config"))
    if run.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype: '{run.dtype}' will not do; float32 or bfloat16 will")
    if not (0 < run.epochs < math.inf and run.eval_every_epochs > 0 and run.log_every_steps > 0):
        raise UserError(
            "config: epochs, eval_every_epochs and log_every_steps must be above zero; here they are "
            f"{run.epochs}, {run.eval_every_epochs} and {run.log_every_steps}"
        )
    for name in ("seed", "checkpoint_every_steps", "log_every_steps", "batch_size"):
        value = getattr(run, name)
        if not isinstance(value, int) or value < 0:
            raise UserError(f"config.{name}: {value} will not do; a whole number that is not negative will")
    if not 0 <= run.ema_decay < 1:
        raise UserError(f"config.ema_decay: {run.ema_decay} is not in [0, 1)")
    return run


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as plain dicts, its references resolved."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


class OptionsHelp(Exception):  # noqa: N818 - it is an answer
    """Raised by `parse_argument("help")`; its argument is the options. This is how `--help` learns a file's options."""


def parse_argument(argument: str, **options: Any) -> SimpleNamespace:
    """Reads what stands behind the colon of `--config=file.py:name=value,name=value`.

    Args:
      argument: that text; empty means all defaults.
      **options: for each name its default, whose type the value shall have; or a tuple of the values that would do,
        the default first.

    Returns:
      A namespace of all the names.

    Raises:
      UserError: for an unknown name or value, with the nearest one.
      OptionsHelp: if the argument is `help`.

    Examples:
      >>> parse_argument("method=kd,runlocal=true", method=("lfcc", "kd"), runlocal=False)
      namespace(method='kd', runlocal=True)
    """
    if argument == "help":
        raise OptionsHelp(options)
    chosen = {name: option[0] if isinstance(option, tuple) else option for name, option in options.items()}
    for part in filter(None, argument.split(",")):
        name, _, value = part.partition("=")
        if name not in options:
            raise unknown("name", name, options, "--config=file.py:...")
        option = options[name]
        if isinstance(option, tuple) and value not in option:
            raise unknown(name, value, option, "--config=file.py:...")
        if isinstance(option, bool):
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise unknown(name, value, ("true", "false"), "--config=file.py:...")
            chosen[name] = value.lower() in ("", "true", "1")
        else:
            try:
                chosen[name] = value if isinstance(option, tuple) else type(option)(value)
            except ValueError as error:
                raise UserError(f"--config=file.py:...: {name}={value} is no {type(option).__name__}") from error
    return SimpleNamespace(**chosen)

"""Reads a run's config. Unknown keys and invalid values are errors before any computation."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections.config_dict import RequiredValueError

from lfcc_jax.arguments import AtMost, Between, HalfOpenFraction, Positive, check_value, checked_arguments
from lfcc_jax.errors import UserError, shown
from lfcc_jax.models.saved import IN_PYTHON

Block = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Config of a run. Each block is the keyword arguments of the function below.

    Attributes:
      data: Arguments of `lfcc_jax.data.open_inputs`.
      student: Arguments of `lfcc_jax.models.create`: `name`, and fields that differ from the network's defaults. Also
        `checkpoint`, a work directory to initialize the student from, with the same number of classes; unused if empty.
      losses: A block per method: `weight` (a number, or a block for `training.schedules.create`), and the settings of
        `lfcc_jax.methods.create`. Weight 0 turns the method off.
      optimizer: Arguments of `training.optimizer.create`; `learning_rate` is a number or a schedule.
      epochs: Number of epochs.
      batch_size: Global batch size, over all devices.
      teacher: Like `student`; `checkpoint` is the work directory of the run that trained it. Also `weights`, which
        multiply `losses.METHOD.weight` for this teacher: a number by method, 1 unless given, and 0 turns the method
        off; and `logits`, False to use its features alone, for one with other classes than the data. Without a
        `name`, there is no teacher. Several teachers have a block each: `{"dino": {"name": ...}, ...}`.
      seed: Seed of initialization, shuffling, augmentation and dropout.
      dtype: Compute dtype of the networks, `float32` or `bfloat16`; weights and losses are float32.
      ema_decay: Decay of the moving average of the student's variables, which is evaluated instead of them; 0 turns it
        off. There is no warm-up: after n steps, the initial weights have weight ema_decay^n in the average.
      images_at_once: Images that each device augments, and passes through a teacher, at a time; must divide the images
        of a device. 0 takes all. -1 takes all, except on TPUs: there about 8 of 224 x 224 pixels, or as many pixels.
      mesh: Arguments of `training.sharding.create_mesh`.
      probe: Arguments of `training.probe.open_probe`: labeled images by which the features of student and teacher are
        judged. Without a `name`, there is none.
      log_every_steps: Number of steps between progress lines.
      eval_every_epochs: Number of epochs between evaluations and their checkpoints; the last step is always evaluated.
      checkpoint_every_steps: Number of steps between further checkpoints; 0 turns them off.
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
    images_at_once: Annotated[int, Between(-1, 10**6)] = -1
    mesh: Block = dataclasses.field(default_factory=dict)
    probe: Block = dataclasses.field(default_factory=dict)
    log_every_steps: Annotated[int, Between(1, 10**5)] = 50
    eval_every_epochs: Annotated[float, Positive, AtMost(10**6)] = 1.0
    checkpoint_every_steps: Annotated[int, Between(0, 10**9)] = 0

    @property
    def teachers(self) -> dict[str, Block]:
        """The block of each teacher, sorted by the teacher's name in the config. A single teacher is called ""."""
        if self.teacher.get("name"):
            return {"": self.teacher}
        if not any(isinstance(block, Mapping) for block in self.teacher.values()):
            return {}
        # An empty `name` and `checkpoint` may remain from a config without a teacher.
        return {name: self.teacher[name] for name in sorted(self.teacher, key=str) if self.teacher[name] != ""}

    @property
    def teacher_networks(self) -> dict[str, str]:
        """The name of each teacher's network, for people to read: `vit_small`, or `vit_small@dino`."""
        return {name: at(block["name"], name) for name, block in self.teachers.items()}


def at(name: str, teacher: str) -> str:
    """Returns the name of a loss or metric of one of several teachers, `lfcc@dino`; `lfcc` if `teacher` is ""."""
    return f"{name}@{teacher}" if teacher else name


def teacher_of(name: str) -> str:
    """Returns the teacher in a name that `at` made."""
    return name.partition("@")[2]


def teacher_key(teacher: str) -> str:
    """Returns the config key of a teacher's block."""
    return f"config.teacher.{teacher}" if teacher else "config.teacher"


def read_config(config: Mapping[str, Any]) -> RunConfig:
    """Returns the run that an `ml_collections.ConfigDict`, or a plain dict, describes.

    Raises:
      UserError: if a key is unknown (with the nearest one) or missing, or a value has the wrong type or is out of
        bounds.
    """
    run = RunConfig(**checked_arguments(RunConfig, as_dict(config), "config"))
    if run.teacher.get("name"):
        if named := [n for n, block in run.teacher.items() if isinstance(block, Mapping) and "name" in block]:
            raise UserError(
                f"config.teacher.name must be empty if teachers have a block each, as {named[0]} does, got "
                f"{shown(run.teacher['name'])}"
            )
    else:
        for name, block in run.teachers.items():
            if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
                raise UserError(
                    "config.teacher must be one teacher with a `name`, or a block per teacher, whose names consist of "
                    f"letters, digits, '_' and '-', got {shown(name)}"
                )
            check_value(block, Mapping, teacher_key(name))
            if "name" not in block:
                raise UserError(f"{teacher_key(name)}: missing name, for example 'resnet18'")
    return run


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as plain dicts, with its references resolved.

    Raises:
      UserError: if it is neither a `ConfigDict` nor a dict, or a required value is missing.
    """
    if hasattr(config, "to_dict"):
        try:
            return config.to_dict()
        except RequiredValueError as error:
            raise UserError(f"config: a required value is missing: {error}") from error
    check_value(config, Mapping, "config")
    return dict(config)


def with_given(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config in which networks that are given as Python objects have names.

    Args:
      config: The config.
      given: `student` and `teacher`, if they are given; several teachers as a dict.

    Raises:
      UserError: if the config describes such a network too.
    """
    config = as_dict(config)
    for role, network in given.items():
        blocks = config.get(role) or {}
        if not isinstance(network, Mapping):
            config[role] = _given(blocks, network, role)
        elif isinstance(blocks, Mapping) and not blocks.get("name"):
            named = {name: _given(blocks.get(name) or {}, each, f"{role}.{name}") for name, each in network.items()}
            config[role] = {**blocks, **named}
        else:
            raise UserError(f"config.{role} must be a block per {role} if `{role}` is a dict, got {shown(blocks)}")
    return config


def _given(block: Any, network: Any, key: str) -> Block:
    """Returns the block of a network that is given as a Python object. Of a teacher's, the `weights` are kept."""
    role = key.partition(".")[0]
    kept = ("weights",) if role == "teacher" else ()
    if not isinstance(block, Mapping) or not set(block) <= set(kept):
        but = "empty except for `weights`" if kept else "empty"
        raise UserError(f"config.{key} must be {but} if `{role}` is given as a Python object, got {shown(block)}")
    module = network[0] if isinstance(network, tuple) else network
    return {**block, "name": f"{IN_PYTHON}{getattr(module, 'name', None) or type(module).__name__}"}


def differences(first: Any, second: Any, prefix: str = "config") -> list[tuple[str, Any, Any]]:
    """Returns the values that differ between two nested dicts, as `(key, value in first, value in second)`.

    Examples:
      >>> differences({"seed": 0, "data": {"name": "a"}}, {"data": {"name": "b"}})
      [('config.data.name', 'a', 'b'), ('config.seed', 0, 'unset')]
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        pairs = [(key, first.get(key, "unset"), second.get(key, "unset")) for key in sorted(first.keys() | second)]
        return [item for key, a, b in pairs for item in differences(a, b, f"{prefix}.{key}" if prefix else key)]
    return [] if first == second else [(prefix, first, second)]

"""Builds networks, weighted losses and an optimizer from a config. Reads no files and runs no computation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lfcc_jax import methods, models
from lfcc_jax.arguments import check_value, checked_arguments, signature
from lfcc_jax.errors import UserError, shown, unknown
from lfcc_jax.training import optimizer as optimizers
from lfcc_jax.training import schedules
from lfcc_jax.training.config import Block, RunConfig
from lfcc_jax.training.resident import make_train_loop
from lfcc_jax.training.schedules import Schedule
from lfcc_jax.training.sharding import batch_sharding, replicated, weight_shardings
from lfcc_jax.training.state import TrainState, init_state
from lfcc_jax.training.step import Prepare, make_train_step


class Images(NamedTuple):
    """What networks and losses need to know of the images.

    Attributes:
      num_classes: how many classes there are.
      size: height and width of what the networks get, in pixels.
      channels: 3 for color, 1 for gray.
      count: how many there are to train on.
    """

    num_classes: int
    size: int
    channels: int
    count: int


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What a run trains, and how.

    Attributes:
      student: the network that is trained.
      teacher: the network that is imitated, or None.
      losses: the methods whose losses add up, by name.
      weights: of each method, as a function of the step.
      optimizer: of all that is trained.
      learning_rate: as a function of the step.
      ema_decay: of the student's moving average; 0 is none.
    """

    student: models.Network
    teacher: models.Network | None
    losses: Mapping[str, methods.Method]
    weights: Mapping[str, Schedule]
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    ema_decay: float

    def init(self, key: jax.Array) -> TrainState:
        """Returns the state at step 0."""
        return init_state(key, self.student, self.teacher, self.losses, self.optimizer, use_ema=self.ema_decay > 0)

    def state_shapes(self) -> TrainState:
        """Returns shapes and dtypes of the state, computing nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def train_step(self, mesh: Mesh, augment: Prepare | None = None, *, resident: bool = False) -> Callable[..., Any]:
        """Returns the jitted training step, the state donated: see `make_train_step`; or a loop: `make_train_loop`."""
        losses = {name: m.clone(mesh=mesh) if hasattr(m, "mesh") else m for name, m in self.losses.items()}
        step = make_train_step(
            self.student, self.teacher, losses, self.weights, self.optimizer, self.ema_decay, augment
        )
        placement = weight_shardings(self.state_shapes(), mesh)
        step = make_train_loop(step) if resident else step
        return jax.jit(step, donate_argnums=0, out_shardings=(placement, replicated(mesh)))

    def step_arguments(self, mesh: Mesh, batch_size: int, image_shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Returns shapes and placements of the step's arguments, to compile it for.

        Args:
          mesh: of devices, which need not be there.
          batch_size: global.
          image_shape: `(height, width, channels)` of the images as they come from the host.
        """

        def placed(shapes: Any) -> Any:
            placement = weight_shardings(shapes, mesh)
            return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placement)

        split = batch_sharding(mesh)
        number = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=split)
        image = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8, sharding=split)
        teacher = None if self.teacher is None else placed(self.teacher.variable_shapes())
        return placed(self.state_shapes()), teacher, {"image": image, "label": number, "index": number}


def build(run: RunConfig, images: Images, teacher: models.Network | None = None) -> Distillation:
    """Returns what a config describes.

    Args:
      run: the config.
      images: What the networks need to know about the data.
      teacher: Overrides the teacher described by the config; see `teacher_network`.

    Raises:
      UserError: if a name or a key is unknown (with the nearest one), or a value is out of bounds.
    """
    student = network(run.student, images, run.dtype)
    if teacher is None and run.teacher.get("name"):
        teacher = teacher_network(run, images)
    timing = {"steps_per_epoch": images.count // run.batch_size, "total_steps": count_steps(run, images.count)}
    losses, weights = {}, {}
    for name, block in run.losses.items():
        method = _loss(name, block, images.count)
        weight = block.get("weight", 1.0)
        if weight == 0:
            continue
        if method.needs_teacher and teacher is None:
            raise UserError(f"config.losses.{name} needs a teacher, and config.teacher.name is empty")
        losses[name] = method
        weights[name] = schedules.create(weight, **timing, where=f"config.losses.{name}.weight")
    if not losses:
        raise UserError(
            f"config.losses must contain at least one loss with a weight. Known: {', '.join(methods.list_methods())}"
        )
    block = checked_arguments(optimizers.create, run.optimizer, "config.optimizer", {"decays": student.decays})
    learning_rate = schedules.create(block.pop("learning_rate"), **timing, where="config.optimizer.learning_rate")
    optimizer = optimizers.create(**block, learning_rate=learning_rate)
    return Distillation(student, teacher, losses, weights, optimizer, learning_rate, run.ema_decay)


def check_blocks(run: RunConfig) -> None:
    """Checks the networks, losses and optimizer of a config as far as that is possible without the data.

    Raises:
      UserError: as `build`.
    """
    for whose, block in (("student", run.student), ("teacher", run.teacher)):
        if whose == "student" or block.get("name"):
            some = Images(num_classes=10, size=224, channels=block.get("image_channels", 3), count=0)
            network(block, some, run.dtype, f"config.{whose}")
    for name, block in run.losses.items():
        _loss(name, block, count=2**31)
    block = checked_arguments(optimizers.create, run.optimizer, "config.optimizer", {"decays": models.Network.decays})
    optimizers.create(**block | {"learning_rate": 1.0})  # a schedule needs the number of steps, and so the data


def count_steps(run: RunConfig, count: int) -> int:
    """Returns the number of steps of a run on `count` training images.

    Raises:
      UserError: if the batch is larger than the data set, or the run is shorter than half a step or too long to count.
    """
    steps_per_epoch = count // run.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"config.batch_size must be at most the number of training images, {count}, got {run.batch_size}"
        )
    steps = round(run.epochs * steps_per_epoch)
    if not 0 < steps < 2**31:
        raise UserError(
            f"config.epochs must amount to between 1 and 2^31 - 1 steps, got {run.epochs:g} epochs of {steps_per_epoch}"
        )
    return steps


def teacher_network(run: RunConfig, images: Images, made: Mapping[str, Any] | None = None) -> models.Network:
    """Returns the teacher.

    Args:
      run: The config.
      images: What the networks need to know about the data.
      made: The description in its checkpoint. Fields that the config does not set are as the teacher was trained.

    Raises:
      UserError: if a name or a key is unknown (with the nearest one), or a value is out of bounds.
    """
    block = run.teacher
    if made is not None and made["name"] == block["name"]:
        block = made["overrides"] | block
    return network(block, images, run.dtype, "config.teacher")


def network(block: Block, images: Images, dtype: str, where: str = "config.student") -> models.Network:
    """Returns the network that a config block describes.

    Raises:
      UserError: if a name or a key is unknown (with the nearest one), or a value is out of bounds or not the data's.
    """
    if "name" not in block:
        raise UserError(f"{where}: missing name, for example 'resnet18'")
    if block.get("image_channels", images.channels) != images.channels:
        raise UserError(
            f"{where}.image_channels must be {images.channels}, as in the data, got {shown(block['image_channels'])}"
        )
    check_value(block.get("dtype", dtype), Literal["float32", "bfloat16"], f"{where}.dtype")
    fields = {"image_channels": images.channels, "dtype": dtype} | block
    sizes = {"num_classes": images.num_classes, "image_size": images.size}
    return models.configured(where, block["name"], fields, sizes, {"name": str, "checkpoint": str})


def _loss(name: str, block: Block, count: int) -> methods.Method:
    """Returns the method of a block of `config.losses`."""
    if name not in methods.METHODS:
        raise unknown("method", name, methods.METHODS, "config.losses")
    where, kind = f"config.losses.{name}", methods.METHODS[name]
    set_by_run = {key: value for key, value in {"examples": count, "mesh": None}.items() if key in signature(kind)}
    method = kind(**checked_arguments(kind, block, where, set_by_run, {"weight": schedules.Spec}))
    if getattr(method, "draws", 0) > count:
        raise UserError(f"{where}.draws must be at most the number of training images, {count}, got {method.draws}")
    return method

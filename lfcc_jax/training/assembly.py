"""Makes of a config what a run trains: networks, weighted losses, an optimizer. Nothing is read, nothing computed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lfcc_jax import methods, models
from lfcc_jax.errors import UserError, checked_arguments
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
      channels: 3 for colour, 1 for grey.
      count: how many there are to train on.
    """

    num_classes: int
    size: int
    channels: int
    count: int


@dataclasses.dataclass(frozen=True)
class Assembly:
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


def assemble(run: RunConfig, images: Images, teacher: models.Network | None = None) -> Assembly:
    """Returns what a config describes.

    Args:
      run: the config.
      images: of the images.
      teacher: the network that is imitated, if it is known better than the config says; see `teacher_network`.

    Raises:
      UserError: for a name or a key that is unknown, with the nearest one, or a value that makes no sense.
    """
    student = network({key: value for key, value in run.student.items() if key != "checkpoint"}, images, run.dtype)
    if teacher is None and run.teacher.get("name"):
        teacher = teacher_network(run, images)
    steps_per_epoch = images.count // run.batch_size
    timing = {"steps_per_epoch": steps_per_epoch, "total_steps": max(1, round(run.epochs * steps_per_epoch))}
    losses, weights = {}, {}
    for name, block in run.losses.items():
        weight = block.get("weight", 1.0)
        settings = {key: value for key, value in block.items() if key != "weight"}
        for key, whose in (("examples", "data set"), ("mesh", "run")):
            if key in settings:
                raise UserError(f"config.losses.{name}.{key}: it is the {whose}'s, and cannot be given")
        method = methods.create(name, **settings)
        if hasattr(method, "examples"):
            method = method.clone(examples=images.count)
        if weight == 0:
            continue
        if method.needs_teacher and teacher is None:
            raise UserError(f"config.losses.{name} needs a teacher; config.teacher.name is empty")
        losses[name] = method
        weights[name] = schedules.create(weight, **timing, where=f"config.losses.{name}.weight")
    if not losses:
        raise UserError(f"config.losses: nothing to train on. Known: {', '.join(methods.list_methods())}")
    block = checked_arguments(optimizers.create, run.optimizer, "config.optimizer")
    learning_rate = schedules.create(block.pop("learning_rate"), **timing, where="config.optimizer.learning_rate")
    optimizer = optimizers.create(**block, learning_rate=learning_rate)
    return Assembly(student, teacher, losses, weights, optimizer, learning_rate, run.ema_decay)


def teacher_network(run: RunConfig, images: Images, made: Mapping[str, Any] | None = None) -> models.Network:
    """Returns the teacher.

    Args:
      run: the config.
      images: of the images.
      made: what its checkpoint says it is; what the config does not say is then as it was trained.

    Raises:
      UserError: for a name or a key that is unknown, with the nearest one.
    """
    block = {key: value for key, value in run.teacher.items() if key != "checkpoint"}
    if made is not None and made["name"] == block["name"]:
        block = made["overrides"] | block
    return network(block, images, run.dtype, "config.teacher")


def network(block: Block, images: Images, dtype: str, where: str = "config.student") -> models.Network:
    """Returns the network that a config block describes.

    Raises:
      UserError: for a name or a key that is unknown, with the nearest one.
    """
    if "name" not in block:
        raise UserError(f"{where}: missing name. Known: {', '.join(models.list_models())}")
    for key in ("num_classes", "image_size"):
        if key in block:
            raise UserError(f"{where}.{key}: it is the data set's, and cannot be given")
    settings = {"image_channels": images.channels, "dtype": jnp.dtype(dtype)} | block
    return models.create(num_classes=images.num_classes, image_size=images.size, **settings)

"""Builds networks, weighted losses and an optimizer from a config. Reads no files and runs no computation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import optax
from jax.sharding import Mesh

from lfcc_jax import methods, models
from lfcc_jax.arguments import check_value, checked_arguments
from lfcc_jax.data import Images
from lfcc_jax.errors import UserError, shown, unknown
from lfcc_jax.training import optimizer as optimizers
from lfcc_jax.training import schedules
from lfcc_jax.training.config import Block, RunConfig
from lfcc_jax.training.schedules import Schedule
from lfcc_jax.training.sharding import on_host, placed, replicated, weight_shardings
from lfcc_jax.training.state import TrainState, init_state
from lfcc_jax.training.step import Augment, make_train_step


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Networks, losses and optimizer of a run.

    Attributes:
      student: Network to train.
      teacher: Network to distill, or None.
      losses: Methods whose losses are summed, by name.
      weights: Weight of each method, as a function of the step.
      optimizer: Updates everything that is trained.
      learning_rate: Learning rate, as a function of the step.
      ema_decay: Decay of the student's moving average; 0 turns it off.
      total_steps: Number of training steps.
    """

    student: models.Network | models.Adapter
    teacher: models.Network | models.Adapter | None
    losses: Mapping[str, methods.Method]
    weights: Mapping[str, Schedule]
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    ema_decay: float
    total_steps: int

    def without_teacher(self) -> "Distillation":
        """Returns the same without a teacher, if the teacher would only be used for comparison.

        Raises:
          UserError: if a loss needs a teacher.
        """
        for name, method in self.losses.items():
            if method.needs_teacher:
                own = isinstance(self.teacher, models.Adapter)
                raise UserError(
                    f"config.teacher.checkpoint: missing, and config.losses.{name} needs a teacher; give the work "
                    "directory of the run that trained it, "
                    + (
                        "or make the network with its weights"
                        if own
                        else "such as one with --config=FILE:method=teacher"
                    )
                )
        return dataclasses.replace(self, teacher=None)

    def init(self, key: jax.Array, weights: Any = None) -> TrainState:
        """Returns the state at step 0, with these variables of the student, or random ones if None."""
        use_ema = self.ema_decay > 0
        return init_state(key, self.student, self.teacher, self.losses, self.optimizer, use_ema, weights)

    def create_state(self, mesh: Mesh, seed: int) -> TrainState:
        """Returns the state at step 0, placed on the devices."""
        # Runs once; on CPU, unoptimized code compiles three times faster.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        placement = weight_shardings(self.state_shapes(), mesh)
        # An argument, because weights that a network came with would otherwise be constants of the program.
        weights = on_host(getattr(self.student, "weights", None))
        return jax.jit(self.init, out_shardings=placement, compiler_options=options)(jax.random.key(seed), weights)

    def state_shapes(self) -> TrainState:
        """Returns shapes and dtypes of the state, without computing it."""
        return self._state_shapes

    @functools.cached_property
    def _state_shapes(self) -> TrainState:
        return jax.eval_shape(self.init, jax.random.key(0))

    def train_step(
        self,
        mesh: Mesh,
        augment: Augment | None = None,
        program: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda step: step,
    ) -> Any:
        """Returns the jitted training step, which donates the state.

        Args:
          mesh: Devices to train on, which need not exist.
          augment: As in `make_train_step`.
          program: Wraps the step before compilation; see `Feed.program`.
        """
        losses = {name: method.for_run(mesh=mesh) for name, method in self.losses.items()}
        step = make_train_step(
            self.student, self.teacher, losses, self.weights, self.optimizer, self.ema_decay, augment
        )
        placement = weight_shardings(self.state_shapes(), mesh)
        return jax.jit(program(step), donate_argnums=0, out_shardings=(placement, replicated(mesh)))

    def step_arguments(self, mesh: Mesh) -> tuple[Any, Any]:
        """Returns shapes, dtypes and shardings of the step's state and teacher variables, for compilation."""
        teacher = None if self.teacher is None else placed(self.teacher.variable_shapes(), mesh)
        return placed(self.state_shapes(), mesh), teacher


def build(
    run: RunConfig,
    images: Images,
    made: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Distillation:
    """Returns what a config describes.

    Args:
      run: The config.
      images: What the networks need to know about the data.
      made: Description in the teacher's checkpoint. It sets the fields that the config does not.
      given: `student` and `teacher`, if they are Python objects; see `models.adapters.adapt`.

    Raises:
      UserError: if a name or a key is unknown (with the nearest one), or a value is out of bounds.
    """
    student = network(run.student, images, run.dtype, given=given.get("student"))
    if not student.num_classes:
        raise UserError(f"config.student: {run.student['name']} must return logits [batch, {images.num_classes}]")
    teacher = None
    if run.teacher.get("name"):
        same = made is not None and models.full_name(made["name"]) == models.full_name(run.teacher["name"])
        block = (made["overrides"] if same else {}) | run.teacher
        # A teacher that was saved without a classifier has none here.
        classes = images if made is None or made["num_classes"] else images._replace(num_classes=0)
        teacher = network(block, classes, run.dtype, "config.teacher", given.get("teacher"))
    total_steps = count_steps(run, images.count)
    timing = {"steps_per_epoch": images.count // run.batch_size, "total_steps": total_steps}
    losses, weights = {}, {}
    for name, block in run.losses.items():
        method = _loss(name, block, images.count)
        weight = block.get("weight", 1.0)
        if weight == 0:
            continue
        if method.needs_teacher and teacher is None:
            raise UserError(f"config.losses.{name} needs a teacher, but config.teacher.name is empty")
        if method.needs_logits and not teacher.num_classes:
            others = sorted(n for n, m in methods.METHODS.items() if m.needs_teacher and not m.needs_logits)
            raise UserError(
                f"config.losses.{name} needs the teacher's logits, but {run.teacher['name']} returns none; losses that "
                f"need none: {', '.join(others)}"
            )
        losses[name] = method
        weights[name] = schedules.create(weight, **timing, where=f"config.losses.{name}.weight")
    if not losses:
        raise UserError(
            "config.losses must contain at least one loss with a nonzero weight. "
            f"Known: {', '.join(methods.list_methods())}"
        )
    block = checked_arguments(optimizers.create, run.optimizer, "config.optimizer", {"decays": student.decays})
    learning_rate = schedules.create(block.pop("learning_rate"), **timing, where="config.optimizer.learning_rate")
    optimizer = optimizers.create(**block, learning_rate=learning_rate)
    return Distillation(student, teacher, losses, weights, optimizer, learning_rate, run.ema_decay, total_steps)


def check_blocks(run: RunConfig) -> None:
    """Checks the networks, losses and optimizer of a config as far as possible without the data.

    Raises:
      UserError: as `build`.
    """
    for role, block in (("student", run.student), ("teacher", run.teacher)):
        if role == "student" or block.get("name"):
            if ":" in str(block.get("name")):  # its function would load weights
                models.adapters.check_factory(f"config.{role}", block["name"], block, _READ_BY_RUN)
                continue
            images = Images(num_classes=10, size=224, channels=block.get("image_channels", 3), count=0)
            network(block, images, run.dtype, f"config.{role}")
    for name, block in run.losses.items():
        _loss(name, block, count=2**31)
    block = checked_arguments(optimizers.create, run.optimizer, "config.optimizer", {"decays": models.Network.decays})
    optimizers.create(**block | {"learning_rate": 1.0})  # schedules need the number of steps, hence the data


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


def network(
    block: Block, images: Images, dtype: str, where: str = "config.student", given: Any = None
) -> models.Network | models.Adapter:
    """Returns the network that a config block describes.

    Args:
      block: The block.
      images: What the network needs to know about the data.
      dtype: Compute dtype, if the block has none.
      where: Name of the block in error messages.
      given: The network itself, if the block does not describe it; see `models.adapters.adapt`.

    Raises:
      UserError: if a name or a key is unknown (with the nearest one), or a value is out of bounds or conflicts with the
        data; if a user's own network raises, or its output does not fit.
    """
    if given is not None:
        network = models.adapters.adapt(given, where)
        if isinstance(network, models.Adapter):
            network = network.for_data(images.num_classes, images.size, images.channels)
        return _checked(network, images, where)
    if "name" not in block:
        raise UserError(f"{where}: missing name, for example 'resnet18'")
    if block.get("image_channels", images.channels) != images.channels:
        raise UserError(
            f"{where}.image_channels must be {images.channels}, as in the data, got {shown(block['image_channels'])}"
        )
    check_value(block.get("dtype", dtype), Literal["float32", "bfloat16"], f"{where}.dtype")
    fields = {"image_channels": images.channels, "dtype": dtype} | block
    sizes = {"num_classes": images.num_classes, "image_size": images.size}
    network = models.configured(where, block["name"], fields, sizes, _READ_BY_RUN)
    return _checked(network, images, where) if ":" in block["name"] else network


# Keys of a network's block that are not its fields.
_READ_BY_RUN = {"name": str, "checkpoint": str}


def _checked(network: models.Network | models.Adapter, images: Images, where: str) -> models.Network | models.Adapter:
    """Returns a user's network after tracing it, without logits if it returns none.

    Raises:
      UserError: if it raises, or its logits do not fit the data.
    """
    name = getattr(network, "name", None) or type(network).__name__
    shape = (2, images.size, images.size, images.channels)
    try:
        for train in (False, True) if where.endswith("student") else (False,):
            output, _ = jax.eval_shape(
                lambda variables, x, train=train: network.apply(
                    variables,
                    x,
                    train,
                    mutable=[key for key in variables if key != "params"],
                    rngs={"dropout": jax.random.key(0)},
                ),
                network.variable_shapes(),
                jax.ShapeDtypeStruct(shape, "float32"),
            )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a user's network may fail in any way
        raise models.adapters.user_code_error(f"{where}: {name} on images {list(shape)}", error) from error
    for key, x in {"logits": output.logits, **output.features}.items():
        if x is not None and x.shape[0] != shape[0]:
            raise UserError(
                f"{where}: {name} must return {key} for each image, [{shape[0]}, ...] for {shape[0]} images, got "
                f"{list(x.shape)}"
            )
    if output.logits is not None and images.num_classes not in (0, output.logits.shape[-1]):
        raise UserError(
            f"{where}: {name} must return logits [batch, {images.num_classes}] for the {images.num_classes} classes of "
            f"the data, got {list(output.logits.shape)}; set logits=False if it does not classify"
        )
    if output.logits is None and isinstance(network, models.Adapter):
        return network.for_data(0, images.size, images.channels)
    return network


def _loss(name: str, block: Block, count: int) -> methods.Method:
    """Returns the method of a block of `config.losses`."""
    if name not in methods.METHODS:
        raise unknown("method", name, methods.METHODS, "config.losses")
    method = methods.METHODS[name]
    set_by_run = {field: getattr(method, field) for field in method.set_by_run}  # the defaults, until `for_run`
    arguments = checked_arguments(method, block, f"config.losses.{name}", set_by_run, {"weight": schedules.Spec})
    return method(**arguments).for_run(num_examples=count)

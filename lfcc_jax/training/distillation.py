"""Builds networks, weighted losses and an optimizer from a config. Reads no files and runs no computation."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import jax
import optax
from jax.sharding import Mesh

from lfcc_jax import methods, models
from lfcc_jax.arguments import NonNegative, check_value, checked_arguments
from lfcc_jax.data import Images
from lfcc_jax.data.augmentation import Augmentation
from lfcc_jax.errors import UserError, shown, unknown
from lfcc_jax.training import optimizer as optimizers
from lfcc_jax.training import schedules
from lfcc_jax.training.config import Block, RunConfig, at, teacher_key, teacher_of
from lfcc_jax.training.parts import Parts
from lfcc_jax.training.schedules import Schedule
from lfcc_jax.training.sharding import on_host, placed, replicated, weight_shardings
from lfcc_jax.training.state import TrainState, init_state
from lfcc_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Networks, losses and optimizer of a run.

    Attributes:
      student: Network to train.
      teachers: Networks to distill, by name; a single one is called "".
      losses: Methods whose losses are summed, by name: `lfcc`, or `lfcc@dino` for the teacher called "dino".
      weights: Weight of each of them, as a function of the step.
      optimizer: Updates everything that is trained.
      learning_rate: Learning rate, as a function of the step.
      ema_decay: Decay of the student's moving average; 0 turns it off.
      total_steps: Number of training steps.
      images_at_once: Images that each device augments, and passes through a teacher, at a time; see `parts.Parts`.
    """

    student: models.Network | models.Adapter
    teachers: Mapping[str, models.Network | models.Adapter]
    losses: Mapping[str, methods.Method]
    weights: Mapping[str, Schedule]
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    ema_decay: float
    total_steps: int
    images_at_once: int = -1

    def without(self, missing: Collection[str]) -> "Distillation":
        """Returns the same without some teachers, if they would only be used for comparison.

        Raises:
          UserError: if a loss needs one of them.
        """
        for name, method in self.losses.items():
            teacher = teacher_of(name)
            if method.needs_teacher and teacher in missing:
                own = isinstance(self.teachers[teacher], models.Adapter)
                raise UserError(
                    f"{teacher_key(teacher)}.checkpoint: missing, and config.losses.{name.partition('@')[0]} needs a "
                    "teacher; give the work directory of the run that trained it, "
                    + (
                        "or make the network with its weights"
                        if own
                        else "such as one with --config=FILE:method=teacher"
                    )
                )
        teachers = {name: teacher for name, teacher in self.teachers.items() if name not in missing}
        return dataclasses.replace(self, teachers=teachers)

    def init(self, key: jax.Array, weights: Any = None) -> TrainState:
        """Returns the state at step 0, with these variables of the student, or random ones if None."""
        use_ema = self.ema_decay > 0
        return init_state(key, self.student, self.teachers, self.losses, self.optimizer, use_ema, weights)

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
        augment: Augmentation | None = None,
        program: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda step: step,
    ) -> Any:
        """Returns the jitted training step, which donates the state.

        Args:
          mesh: Devices to train on, which need not exist.
          augment: Augmentation of the batch, for both networks; only `to_float` if None.
          program: Wraps the step before compilation; see `Feed.program`.
        """
        losses = {name: method.for_run(mesh=mesh) for name, method in self.losses.items()}
        parts = Parts(mesh, self.images_at_once)
        if augment is not None:
            augment = dataclasses.replace(augment, over_images=parts)
        step = make_train_step(
            self.student, self.teachers, losses, self.weights, self.optimizer, self.ema_decay, augment, parts
        )
        placement = weight_shardings(self.state_shapes(), mesh)
        return jax.jit(program(step), donate_argnums=0, out_shardings=(placement, replicated(mesh)))

    def step_arguments(self, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
        """Returns shapes, dtypes and shardings of the step's state and teacher variables, for compilation."""
        teachers = {name: placed(teacher.variable_shapes(), mesh) for name, teacher in self.teachers.items()}
        return placed(self.state_shapes(), mesh), teachers


def build(
    run: RunConfig,
    images: Images,
    made: Mapping[str, Mapping[str, Any] | None] = MappingProxyType({}),
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Distillation:
    """Returns what a config describes.

    Args:
      run: The config.
      images: What the networks need to know about the data.
      made: Description in each teacher's checkpoint, if any. It sets the fields that the config does not.
      given: `student` and `teacher`, if they are Python objects; see `models.adapters.adapt`. Several teachers are a
        dict.

    Raises:
      UserError: if a name or a key is unknown (with the nearest one), or a value is out of bounds.
    """
    objects = given.get("teacher")
    objects = objects if isinstance(objects, Mapping) else {"": objects}
    teachers = {
        name: _teacher(block, images, run.dtype, teacher_key(name), made.get(name), objects.get(name))
        for name, block in run.teachers.items()
    }
    # Without labels, the classes are those of a teacher.
    classes = images.num_classes or next((t.num_classes for t in teachers.values() if t.num_classes), 0)
    student = network(run.student, images._replace(num_classes=classes), run.dtype, given=given.get("student"))
    factors = _teacher_weights(run)
    total_steps = count_steps(run, images.count)
    timing = {"steps_per_epoch": images.count // run.batch_size, "total_steps": total_steps}
    losses, weights = {}, {}
    for name, block in run.losses.items():
        method = _loss(name, block, images.count)
        weight = block.get("weight", 1.0)
        if weight == 0:
            continue
        if method.needs_teacher and not teachers:
            raise UserError(f"config.losses.{name} needs a teacher, but config.teacher.name is empty")
        if method.needs_labels and not images.num_classes:
            raise UserError(
                f"config.losses.{name} needs labels, but the images have none; losses that need none: "
                f"{_methods(lambda m: not m.needs_labels)}"
            )
        if (method.needs_logits or method.needs_labels) and not student.num_classes:
            raise UserError(
                f"config.losses.{name} needs the student's logits, but {run.student['name']} returns none; it must "
                f"return logits [batch, {classes}]"
            )
        schedule = schedules.create(weight, **timing, where=f"config.losses.{name}.weight")
        for teacher in teachers if method.needs_teacher else [""]:
            factor = factors.get(teacher, {}).get(name, 1.0)
            if factor == 0:
                continue
            if method.needs_logits and not teachers[teacher].num_classes:
                others = _methods(lambda m: m.needs_teacher and not m.needs_logits)
                remedy = f"set {teacher_key(teacher)}.weights.{name}=0.0, or use " if teacher else ""
                raise UserError(
                    f"config.losses.{name} needs the teacher's logits, but {run.teacher_networks[teacher]} returns "
                    f"none; {remedy}losses that need none: {others}"
                )
            if method.needs_logits and teachers[teacher].num_classes != student.num_classes:
                raise UserError(
                    f"config.losses.{name} needs a teacher with the classes of the student, {student.num_classes}, but "
                    f"{run.teacher_networks[teacher]} has {teachers[teacher].num_classes}"
                )
            losses[at(name, teacher)] = method
            weights[at(name, teacher)] = schedule if factor == 1 else _scaled(schedule, factor)
    teaching = [n for n, block in run.losses.items() if methods.METHODS[n].needs_teacher and block.get("weight", 1.0)]
    for teacher in teachers:
        if teacher and teaching and not any(at(name, teacher) in losses for name in teaching):
            raise UserError(
                f"{teacher_key(teacher)}.weights must be positive for at least one of {', '.join(teaching)}, got "
                f"{shown(dict(factors[teacher]))}; leave out a teacher that teaches nothing"
            )
    if images.num_classes and not student.num_classes:
        raise UserError(f"config.student: {run.student['name']} must return logits [batch, {images.num_classes}]")
    if not losses:
        raise UserError(
            "config.losses must contain at least one loss with a nonzero weight. "
            f"Known: {', '.join(methods.list_methods())}"
        )
    block = checked_arguments(optimizers.create, run.optimizer, "config.optimizer", {"decays": student.decays})
    learning_rate = schedules.create(block.pop("learning_rate"), **timing, where="config.optimizer.learning_rate")
    optimizer = optimizers.create(**block, learning_rate=learning_rate)
    return Distillation(
        student, teachers, losses, weights, optimizer, learning_rate, run.ema_decay, total_steps, run.images_at_once
    )


def check_blocks(run: RunConfig) -> None:
    """Checks the networks, losses and optimizer of a config as far as possible without the data.

    Raises:
      UserError: as `build`.
    """
    blocks = {teacher_key(name): block for name, block in run.teachers.items()}
    for where, block in {"config.student": run.student, **blocks}.items():
        if ":" in str(block.get("name")):  # its function would load weights
            models.adapters.check_factory(where, block["name"], block, _read_by_run(where))
            continue
        images = Images(num_classes=10, size=224, channels=block.get("image_channels", 3), count=0)
        network(block, images, run.dtype, where)
    for name, block in run.losses.items():
        _loss(name, block, count=2**31)
    _teacher_weights(run)
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
    network = models.configured(where, block["name"], fields, sizes, _read_by_run(where))
    return _checked(network, images, where) if ":" in block["name"] else network


_Weights = Mapping[str, Annotated[float, NonNegative]]


def _read_by_run(where: str) -> dict[str, Any]:
    """Returns the annotations of those keys of a network's block that are not its fields."""
    return {"name": str, "checkpoint": str} | (
        {} if where == "config.student" else {"weights": _Weights, "logits": bool}
    )


def _teacher(
    block: Block, images: Images, dtype: str, where: str, made: Mapping[str, Any] | None, given: Any
) -> models.Network | models.Adapter:
    """Returns the teacher that a config block and the description in its checkpoint describe."""
    if made is not None:
        same = models.full_name(made["name"]) == models.full_name(block["name"])
        block = (made["overrides"] if same else {}) | block
        # Saved without a classifier, it has none here; without labels, it has the one that it was saved with.
        if not made["num_classes"] or not images.num_classes:
            images = images._replace(num_classes=made["num_classes"])
    check_value(block.get("logits", True), bool, f"{where}.logits")
    if block.get("logits", True):
        if made is not None and made["num_classes"] != images.num_classes:
            raise UserError(
                f"{where}.checkpoint must be a network with {images.num_classes} classes, as the data has, got "
                f"{block['name']} with {made['num_classes']}; set {where}.logits=False to use its features alone"
            )
        return network(block, images, dtype, where, given)
    teacher = network(block, images._replace(num_classes=0), dtype, where, given)
    return teacher.without_logits() if isinstance(teacher, models.Adapter) else teacher


def _teacher_weights(run: RunConfig) -> dict[str, Mapping[str, float]]:
    """Returns the factors on the weights of methods, by teacher and method.

    Raises:
      UserError: if a method is unknown (with the nearest one), not among the run's losses, or needs no teacher; if a
        factor is not a non-negative number.
    """
    factors = {name: block.get("weights", {}) for name, block in run.teachers.items()}
    for teacher, weights in factors.items():
        where = f"{teacher_key(teacher)}.weights"
        check_value(weights, _Weights, where)
        for name in weights:
            if name not in methods.METHODS:
                raise unknown("method", name, methods.METHODS, where)
            if name not in run.losses:
                raise UserError(f"{where}.{name}: config.losses must contain {name}, got {', '.join(run.losses)}")
            if not methods.METHODS[name].needs_teacher:
                raise UserError(f"{where}.{name}: {name} needs no teacher; set config.losses.{name}.weight")
    return factors


def _scaled(schedule: Schedule, factor: float) -> Schedule:
    return lambda step: factor * schedule(step)


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
    if isinstance(network, models.Adapter):
        return network.for_data(0 if output.logits is None else output.logits.shape[-1], images.size, images.channels)
    return network


def _methods(condition: Callable[[type[methods.Method]], bool]) -> str:
    return ", ".join(sorted(name for name, method in methods.METHODS.items() if condition(method)))


def _loss(name: str, block: Block, count: int) -> methods.Method:
    """Returns the method of a block of `config.losses`."""
    if name not in methods.METHODS:
        raise unknown("method", name, methods.METHODS, "config.losses")
    method = methods.METHODS[name]
    set_by_run = {field: getattr(method, field) for field in method.set_by_run}  # the defaults, until `for_run`
    arguments = checked_arguments(method, block, f"config.losses.{name}", set_by_run, {"weight": schedules.Spec})
    return method(**arguments).for_run(num_examples=count)

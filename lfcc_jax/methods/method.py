"""The interface of distillation methods: trainable heads and losses between any two networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jaxtyping import Array

from lfcc_jax.arguments import Between, Distinct, NonNegative
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.losses.lfcc import Points
from lfcc_jax.models import Adapter, Network, Output
from lfcc_jax.precision import widen

# `image` `[B, H, W, C]` in [0, 1] and `label` `[B]`, as the networks see them; `index` `[B]`, the index of each image
# in the training set. Mixed images also have `target` `[B, classes]`; their `label` is that of the larger fraction.
# Images without labels have neither.
Batch = dict[str, Array]

STAGES = ("stage1", "stage2", "stage3", "stage4")

# Settings that several methods share, with their bounds.
Stages = Annotated[tuple[str, ...], Distinct]
Width = Annotated[int, Between(1, 16384)]
Temperature = Annotated[float, Between(1e-3, 1e3)]
Exponent = Annotated[float, Between(1e-3, 1e3)]
Weight = Annotated[float, NonNegative]


class TeacherOutput(NamedTuple):
    """Output of a teacher, and its classifier.

    Attributes:
      logits: As in `Output`.
      features: As in `Output`.
      head: `kernel` `[channels, classes]` and `bias` `[classes]`, which map `features["pooled"]` to the logits; empty
        if the network has no linear layer called `head`.
    """

    logits: Array | None
    features: dict[str, Array]
    head: dict[str, Array]


def teach(
    teacher: Network | Adapter,
    variables: Any,
    images: Array,
    over_images: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> TeacherOutput:
    """Runs a teacher in evaluation mode and stops the gradient.

    Args:
      teacher: Network to run.
      variables: Its variables.
      images: Images, `[batch, height, width, channels]`.
      over_images: Wraps the function that is applied to the images; see `lfcc_jax.training.parts`.
    """
    output = over_images(lambda images: Output(*teacher.apply(variables, images, train=False)))(images)
    return jax.lax.stop_gradient(TeacherOutput(*output, _head(variables)))


def teach_in_parts(
    teacher: Network | Adapter,
    variables: Any,
    images: Array,
    over_images: Callable[[Callable[..., Any]], Callable[..., Any]],
    methods: Mapping[str, "Method"],
) -> dict[str, TeacherOutput]:
    """Runs a teacher as `teach` does, and returns what each of some methods reads of its output.

    Args:
      teacher: As in `teach`.
      variables: As in `teach`.
      images: As in `teach`.
      over_images: As in `teach`.
      methods: The methods, by name.
    """

    def read(images: Array) -> tuple[Output | None, dict[str, Output]]:
        output = Output(*teacher.apply(variables, images, train=False))
        parts = {name: method.of_teacher(output) for name, method in methods.items()}
        parts = {name: part for name, part in parts.items() if part is not output}
        return (None if len(parts) == len(methods) else output), parts  # the output once, whoever reads it

    output, parts = jax.lax.stop_gradient(over_images(read)(images))
    head = _head(variables)
    return {name: TeacherOutput(*parts.get(name, output), head) for name in methods}


def teach_shapes(teacher: Network | Adapter) -> TeacherOutput:
    """Returns shapes and dtypes of what `teach` returns for one image."""
    return TeacherOutput(*teacher.output_shapes(), _head(teacher.variable_shapes()))


def _head(variables: Any) -> dict[str, Any]:
    head = variables["params"].get("head")
    return head if isinstance(head, Mapping) else {}


class Method(nn.Module):
    """Base class of all methods: `method(batch, student, teacher)` returns a loss.

    The fields of a method are the keys of its config block, except those in `set_by_run`. Trainable heads are Linen
    parameters; state that is kept between steps lives in other collections. Both are checkpointed, and neither is part
    of the student.
    """

    # Name of the config block, if it is not the lowercase name of the class.
    block: ClassVar[str] = ""
    # Whether the loss compares with a teacher; without, it gets None.
    needs_teacher: ClassVar[bool] = True
    # Whether the loss reads the teacher's logits.
    needs_logits: ClassVar[bool] = False
    # Whether the loss reads `batch["label"]`.
    needs_labels: ClassVar[bool] = False
    set_by_run: ClassVar[tuple[str, ...]] = ()

    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array | dict[str, Array]:
        """Returns the loss, or a dict of named parts whose sum is the loss.

        Each is `[batch]`, or a scalar if it is a statistic of the batch. No gradient may reach the teacher.
        """
        raise NotImplementedError

    def for_run(self, *, num_examples: int | None = None, mesh: Mesh | None = None) -> "Method":
        """Returns the method with the fields in `set_by_run` filled in.

        Args:
          num_examples: Number of training images, if known.
          mesh: Mesh over which the batch is split, if known.

        Raises:
          UserError: if a setting is out of bounds for this number of images.
        """
        del num_examples, mesh
        return self

    def of_teacher(self, output: Output) -> Output:
        """Returns what the loss reads of a teacher's output, by default all of it.

        Override it in a method that reads much less than the maps. Where images pass through the teacher a few at a
        time, `of_teacher` runs there, and the maps are not kept. Elsewhere `__call__` gets all of the output, so it
        must accept both. Features may be other trees of arrays `[batch, ...]`, such as LFCC's `Points`. `of_teacher`
        must treat each image on its own and use no parameters.
        """
        return output

    @property
    def config_path(self) -> str:
        """The config block, for error messages."""
        return f"config.losses.{self.block or type(self).__name__.lower()}"

    def maps(self, stages: Sequence[str], student: Output, teacher: TeacherOutput) -> dict[str, tuple[Array, Any]]:
        """Returns the student's and the teacher's feature map at each stage, the latter without a gradient.

        The teacher's may be `Points`, if the method's `of_teacher` returns them.

        Raises:
          UserError: if either network lacks a stage.
        """
        for role, output in (("student", student), ("teacher", teacher)):
            known = [name for name, x in output.features.items() if isinstance(x, Points) or x.ndim == 4]
            for stage in stages:
                if stage not in known:
                    error = unknown("stage", stage, known, f"{self.config_path}.stages")
                    raise UserError(f"{error} These are the maps of the {role}.")
        theirs = jax.lax.stop_gradient(teacher.features)
        return {stage: (student.features[stage], theirs[stage]) for stage in stages}

    def pooled(self, student: Output, teacher: TeacherOutput) -> tuple[Array, Array]:
        """Returns the inputs of both classifiers, the teacher's without a gradient.

        Raises:
          UserError: if either network has no feature `pooled`.
        """
        for role, output in (("student", student), ("teacher", teacher)):
            if "pooled" not in output.features or output.features["pooled"].ndim != 2:
                raise UserError(
                    f"{self.config_path} needs a {role} with a feature `pooled`, the vector [batch, channels] that is "
                    f"classified; it has {', '.join(sorted(output.features)) or 'none'}"
                )
        return widen(student.features["pooled"]), jax.lax.stop_gradient(widen(teacher.features["pooled"]))


class MapMethod(Method):
    """Base class of methods that sum a loss between feature maps over `stages`.

    Attributes:
      stages: Names of the feature maps to compare.
    """

    stages: Stages = STAGES

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        pairs = self.maps(self.stages, student, teacher)
        return sum(self._loss(*maps, stage) for stage, maps in pairs.items())

    def _loss(self, student: Array, teacher: Array, stage: str) -> Array:
        """Returns the loss `[batch]` between the two maps of a stage. Called from `nn.compact`: may create heads."""
        raise NotImplementedError

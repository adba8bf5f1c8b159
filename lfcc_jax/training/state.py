"""The state that training updates and checkpoints contain: student, heads and optimizer, but not the teacher."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from lfcc_jax.errors import UserError
from lfcc_jax.methods import Method, teach_shapes
from lfcc_jax.models import Adapter, Network
from lfcc_jax.precision import widen
from lfcc_jax.training.config import teacher_key, teacher_of


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
      step: Number of updates so far.
      params: Parameters that the optimizer updates: `student`, and `heads` by loss.
      collections: All other variables, with the same keys: the student's `batch_stats`, and the memories of methods.
      opt_state: State of the optimizer over `params`.
      ema: Exponential moving average of the student's variables, in float32 or wider, or None.
      rng: Key of the run. Step `n` uses `fold_in(rng, n)`, so a resumed run draws the same numbers.
    """

    step: jax.Array
    params: dict[str, Any]
    collections: dict[str, Any]
    opt_state: Any
    ema: Any
    rng: jax.Array

    @property
    def student(self) -> dict[str, Any]:
        """The student's variables."""
        return {"params": self.params["student"], **self.collections["student"]}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that are evaluated: the moving average if there is one, else the student's."""
        if self.ema is None:
            return self.student
        return jax.tree.map(
            lambda x, like: x if x.dtype == like.dtype else x.astype(like.dtype), self.ema, self.student
        )

    def with_student(self, variables: Mapping[str, Any]) -> "TrainState":
        """Returns this state with other variables for the student, for fine-tuning."""
        params, collections = _split(variables)
        # A copy, because the step donates both.
        ema = None if self.ema is None else jax.tree.map(jnp.copy, _wide(dict(variables)))
        return self.replace(
            params=self.params | {"student": params}, collections=self.collections | {"student": collections}, ema=ema
        )


def init_state(
    key: jax.Array,
    student: Network | Adapter,
    teachers: Mapping[str, Network | Adapter],
    methods: Mapping[str, Method],
    optimizer: optax.GradientTransformation,
    use_ema: bool,
    weights: Any = None,
) -> TrainState:
    """Returns the state at step 0. Pure, so it can be jitted with any sharding or passed to `jax.eval_shape`.

    Args:
      key: Key of the run.
      student: Network to train.
      teachers: Networks to distill, by name; a single one is called "".
      methods: Methods, by name: `lfcc`, or `lfcc@dino` for the teacher called "dino".
      optimizer: Updates everything that is trained.
      use_ema: Whether to keep a moving average of the student's variables.
      weights: The student's variables; initialized from the key if None.
    """
    student_key, heads_key, run_key = jax.random.split(key, 3)
    images = jnp.zeros(student.image_shape(), jnp.float32)
    variables = student.init(student_key, images) if weights is None else weights

    batch = {"image": images, "label": jnp.zeros((1,), jnp.int32), "index": jnp.zeros((1,), jnp.int32)}
    # Heads only depend on the shapes of the networks' outputs.
    student_output = _zeros(student.output_shapes())
    targets = {name: _zeros(teach_shapes(teacher)) for name, teacher in teachers.items()}
    keys = jax.random.split(heads_key, max(len(methods), 1))
    heads = {}
    for i, name in enumerate(sorted(methods)):
        teacher = teacher_of(name)
        target = targets.get(teacher) if methods[name].needs_teacher else None
        try:
            heads[name] = _split(methods[name].init(keys[i], batch, student_output, target))
        except UserError as error:
            if not teacher:
                raise
            key = teacher_key(teacher)
            raise UserError(f"{key}: {error} {key}.weights.{name.partition('@')[0]}=0.0 leaves it out.") from error
    student_params, student_collections = _split(variables)
    params = {"student": student_params, "heads": {name: head for name, (head, _) in heads.items()}}
    collections = {"student": student_collections, "heads": {name: memory for name, (_, memory) in heads.items()}}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=collections,
        opt_state=optimizer.init(params),
        ema=_wide(variables) if use_ema else None,
        rng=run_key,
    )


def _wide(variables: Any) -> Any:
    """Returns variables with floats of at least 32 bits: in bfloat16, a moving average would not move."""

    def widened(x: jax.Array) -> jax.Array:
        return widen(x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widened, variables)


def _split(variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the `params` of some variables, and the other collections."""
    return variables.get("params", {}), {name: value for name, value in variables.items() if name != "params"}


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

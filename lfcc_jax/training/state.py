"""What training changes and a checkpoint holds: the student, the heads, the optimizer's state. Never the teacher."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from lfcc_jax.methods import Method, teach
from lfcc_jax.models import Network


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
      step: how many updates were made.
      student: the student's variables: `params`, and `batch_stats` if it has BatchNorm.
      heads: each method's variables, by the method's name; `params` is trained, other collections are its memory.
      opt_state: of the optimizer, over `trainable(state)`.
      ema: exponential moving average of the student's variables, or None.
      rng: key of the run; step `n` uses `fold_in(rng, n)`, so that a resumed run draws the same numbers.
    """

    step: jax.Array
    student: dict[str, Any]
    heads: dict[str, dict[str, Any]]
    opt_state: optax.OptState
    ema: dict[str, Any] | None
    rng: jax.Array

    @property
    def evaluated(self) -> dict[str, Any]:
        """The student's variables that are evaluated and exported: their moving average if there is one."""
        return self.student if self.ema is None else self.ema


def trainable(state: TrainState) -> dict[str, Any]:
    """Returns what the optimizer updates: `params` of the student and of every head."""
    heads = {name: variables.get("params", {}) for name, variables in state.heads.items()}
    return {"student": state.student["params"], "heads": heads}


def init_state(
    key: jax.Array,
    student: Network,
    teacher: Network | None,
    methods: Mapping[str, Method],
    optimizer: optax.GradientTransformation,
    use_ema: bool,
) -> TrainState:
    """Returns the state at step 0. Pure, so that it can be jitted into any sharding, or only have its shape taken."""
    student_key, heads_key, run_key = jax.random.split(key, 3)
    images = jnp.zeros(student.image_shape(), jnp.float32)
    variables = student.init(student_key, images)

    batch = {"image": images, "label": jnp.zeros((1,), jnp.int32), "index": jnp.zeros((1,), jnp.int32)}
    # Heads need only the sizes of what the networks return.
    ours = _zeros(jax.eval_shape(lambda: student.apply(variables, images)))
    theirs = None if teacher is None else _zeros(_taught_shapes(teacher))
    keys = jax.random.split(heads_key, max(len(methods), 1))
    heads = {name: methods[name].init(keys[i], batch, ours, theirs) for i, name in enumerate(sorted(methods))}

    state = TrainState(
        step=jnp.zeros((), jnp.int32), student=variables, heads=heads, opt_state=(), ema=None, rng=run_key
    )
    return state.replace(opt_state=optimizer.init(trainable(state)), ema=variables if use_ema else None)


def start_from(state: TrainState, variables: Any) -> TrainState:
    """Returns a fresh state with a student that was trained before."""
    # A copy, because the step may overwrite either.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, variables)
    return state.replace(student=variables, ema=ema)


def _taught_shapes(teacher: Network) -> Any:
    images = jax.ShapeDtypeStruct(teacher.image_shape(), jnp.float32)
    return jax.eval_shape(lambda variables, x: teach(teacher, variables, x), teacher.variable_shapes(), images)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

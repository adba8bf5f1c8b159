"""The training step, as a pure function to be jitted."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lfcc_jax.data import to_float
from lfcc_jax.methods import Method, teach, teach_in_parts
from lfcc_jax.models import Adapter, Network
from lfcc_jax.training.config import teacher_of
from lfcc_jax.training.parts import Parts
from lfcc_jax.training.schedules import Schedule
from lfcc_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# Maps a key and a batch from the host to the batch that networks and losses get.
Augment = Callable[[jax.Array, Batch], dict[str, jax.Array]]


def make_train_step(
    student: Network | Adapter,
    teachers: Mapping[str, Network | Adapter],
    methods: Mapping[str, Method],
    weights: Mapping[str, Schedule],
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.0,
    augment: Augment | None = None,
    parts: Parts | None = None,
) -> Callable[[TrainState, Mapping[str, Any], Batch], tuple[TrainState, Metrics]]:
    """Returns `step(state, teacher_variables, batch) -> (state, metrics)`.

    The teachers' variables, by name, are an argument, so they are not compiled into the program. Each teacher runs once
    a step, in evaluation mode, and gets no gradient.

    Args:
      student: Network to train.
      teachers: Networks to distill, by name; a single one is called "".
      methods: Methods whose losses are summed, by name: `lfcc`, or `lfcc@dino` for the teacher called "dino".
      weights: Weight of each of them, as a function of the step.
      optimizer: Updates `state.params`.
      ema_decay: Decay of the moving average in `state.ema`, if that is not None.
      augment: Returns the batch for both networks, with float images in [0, 1]; only `to_float` if None.
      parts: How many images pass through a teacher at a time; all if None.

    Returns:
      The step. Its metrics are float32 scalars: `loss`, the unweighted loss of each method (`at`, or `ofa/exits` for
      methods with several parts), `accuracy` if there are labels, `grad_norm`.
    """

    def read(teacher_variables: Mapping[str, Any], images: jax.Array) -> dict[str, Any]:
        """Returns what each method gets of its teacher."""
        targets = {}
        for teacher, network in teachers.items():
            given = network, teacher_variables[teacher], images
            own = {name: each for name, each in methods.items() if each.needs_teacher and teacher_of(name) == teacher}
            if own and parts is not None and parts.count(images) > 1:
                targets |= teach_in_parts(*given, parts, own)
            elif own:  # a teacher may only be compared with
                targets |= dict.fromkeys(own, teach(*given))
        return targets

    def step(state: TrainState, teacher_variables: Mapping[str, Any], batch: Batch) -> tuple[TrainState, Metrics]:
        student_key, heads_key, augment_key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)
        batch = {**batch, "image": to_float(batch["image"])} if augment is None else augment(augment_key, batch)
        targets = read(teacher_variables, batch["image"])

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            collections = state.collections["student"]
            variables = {"params": params["student"], **collections}
            output, collections = student.apply(
                variables, batch["image"], train=True, mutable=list(collections), rngs={"dropout": student_key}
            )
            terms, memories, total = {}, {}, 0.0
            for name, method in methods.items():
                memory = state.collections["heads"][name]
                variables = {"params": params["heads"][name], **memory}
                losses, memories[name] = method.apply(
                    variables, batch, output, targets.get(name), mutable=list(memory), rngs={"dropout": heads_key}
                )
                values = losses if isinstance(losses, Mapping) else {"": losses}
                means = {f"{name}/{part}".rstrip("/"): loss.mean() for part, loss in values.items()}
                terms |= means
                total += weights[name](state.step) * sum(means.values())
            return total, (terms, output.logits, {"student": collections, "heads": memories})

        (loss, (terms, logits, collections)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, collections=collections, opt_state=opt_state)
        if state.ema is not None:
            state = state.replace(ema=averaged(state.student, state.ema, 1 - ema_decay))
        metrics = terms | {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        if "label" in batch:
            metrics["accuracy"] = jnp.mean(logits.argmax(-1) == batch["label"], dtype=jnp.float32)
        return state, metrics

    return step


def averaged(new: Any, old: Any, step_size: float) -> Any:
    """Returns the moving average of some variables. Those that are no floats, such as counters, are the new ones."""

    def average(x: jax.Array, mean: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return optax.incremental_update(x.astype(mean.dtype), mean, step_size)

    return jax.tree.map(average, new, old)

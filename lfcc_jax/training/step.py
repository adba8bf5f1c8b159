"""One training step, as a pure function to be jitted."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lfcc_jax.methods import Method, teach
from lfcc_jax.models import Network
from lfcc_jax.training.schedules import Schedule
from lfcc_jax.training.state import TrainState, trainable

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# Makes of a batch as it comes from the host, and a key, what the networks and losses see.
Prepare = Callable[[jax.Array, Batch], dict[str, jax.Array]]


def to_float(images: jax.Array) -> jax.Array:
    """Returns uint8 images as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def make_train_step(
    student: Network,
    teacher: Network | None,
    methods: Mapping[str, Method],
    weights: Mapping[str, Schedule],
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.0,
    augment: Prepare | None = None,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
    """Returns `step(state, teacher_variables, batch) -> (state, metrics)`.

    The teacher's variables are an argument, so that they are not compiled into the program; the teacher runs in
    evaluation mode, and no gradient reaches it.

    Args:
      student: the network that is trained.
      teacher: the network that is imitated, or None.
      methods: what makes up the loss, by name.
      weights: of each method, as a function of the step.
      optimizer: updates `trainable(state)`.
      ema_decay: of the moving average in `state.ema`, if that is not None.
      augment: makes float images in [0, 1] of uint8 ones, and labels of labels; by `to_float` alone if None. Both
        networks see what it returns.

    Returns:
      The step. Its metrics are float32 scalars: `loss`, each method's losses unweighted, `accuracy`, `grad_norm`.
    """

    def step(state: TrainState, teacher_variables: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        student_key, heads_key, augment_key = jax.random.split(jax.random.fold_in(state.rng, state.step), 3)
        seen = {**batch, "image": to_float(batch["image"])} if augment is None else augment(augment_key, batch)
        images = seen["image"]
        taught = None if teacher is None else teach(teacher, teacher_variables, images)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = state.student | {"params": params["student"]}
            output, updates = student.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": student_key}
            )
            terms, heads, total = {}, {}, 0.0
            for name, method in methods.items():
                head = state.heads[name] | {"params": params["heads"][name]}
                memory = [collection for collection in head if collection != "params"]
                losses, remembered = method.apply(
                    head, seen, output, taught, mutable=memory, rngs={"dropout": heads_key}
                )
                parts = losses if isinstance(losses, dict) else {"": losses}
                losses = {f"{name}/{part}".rstrip("/"): loss for part, loss in parts.items()}
                terms |= {term: loss.mean() for term, loss in losses.items()}
                total += weights[name](state.step) * sum(terms[term] for term in losses)
                heads[name] = remembered
            return total, (terms, output.logits, updates, heads)

        params = trainable(state)
        (loss, (terms, logits, updates, heads)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        changes, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, changes)

        variables = state.student | updates | {"params": params["student"]}
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(lambda old, new: ema_decay * old + (1 - ema_decay) * new, ema, variables)
        new_state = state.replace(
            step=state.step + 1,
            student=variables,
            heads={
                name: old | heads[name] | ({"params": params["heads"][name]} if "params" in old else {})
                for name, old in state.heads.items()
            },
            opt_state=opt_state,
            ema=ema,
        )
        metrics = terms | {
            "loss": loss,
            "accuracy": jnp.mean(logits.argmax(-1) == seen["label"], dtype=jnp.float32),
            "grad_norm": optax.tree.norm(grads),
        }
        return new_state, metrics

    return step

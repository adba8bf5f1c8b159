"""Measures the cost of each method on top of plain KD: head parameters, state, and the time of a training step.

    python -m experiments.bench.methods --rounds=30

Each step has the cross-entropy, `kd`, and one more method. Compare only times of one run.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.timing import best_seconds
from lfcc_jax import methods, models
from lfcc_jax.training import optimizer as optimizers
from lfcc_jax.training.report import table
from lfcc_jax.training.state import init_state
from lfcc_jax.training.step import make_train_step

EXAMPLES = 50_000  # size of the bank of `crd_bank`, that of CIFAR-100


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet_nano", help="name of the student (default: %(default)s)")
    parser.add_argument("--teacher", default="vit_nano", help="name of the teacher (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=16, help="side of the images, pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="number of images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps per method (default: %(default)s)")
    options = parser.parse_args()

    student, teacher = (models.create(name, 100, options.image_size) for name in (options.student, options.teacher))
    teacher_variables = jax.jit(teacher.init)(jax.random.key(1), jnp.zeros(teacher.image_shape()))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (options.batch, *student.image_shape()[1:]), np.uint8),
        "label": rng.integers(0, 100, options.batch, np.int32),
        "index": rng.choice(EXAMPLES, options.batch, replace=False).astype(np.int32),
    }
    cases: dict[str, dict[str, Any]] = {"kd alone": {}}
    cases |= {name: {} for name in methods.list_methods() if name not in ("cross_entropy", "kd")}
    cases["crd_bank"] = {"num_examples": EXAMPLES}
    cases["ofa, attention"] = {"branch": "attention"}

    runs = {}
    for name, settings in cases.items():
        losses = {other: methods.create(other) for other in ("cross_entropy", "kd")}
        if name != "kd alone":
            losses["more"] = methods.create(name.split(",")[0], **settings)
        runs[name] = Run(student, teacher, losses, teacher_variables, batch)
    best = best_seconds({name: run.step for name, run in runs.items()}, options.rounds)
    for name, run in runs.items():
        if not np.isfinite(run.loss):
            raise FloatingPointError(f"loss of '{name}' must be finite, got {run.loss}")

    rows = [
        [
            name,
            f"{run.parameters:,}",
            f"{run.memory:,}",
            f"{1e3 * best[name]:.1f}",
            f"{best[name] / best['kd alone']:.2f}",
        ]
        for name, run in sorted(runs.items(), key=lambda item: item[0] != "kd alone")
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(student.variable_shapes()["params"]))
    print(
        f"{options.student} ({size:,} parameters) taught by {options.teacher}, images of {options.image_size} pixels, "
        f"batch {options.batch}, float32; best of {options.rounds} steps on {jax.devices()[0].device_kind}, "
        f"jax {jax.__version__}\n"
    )
    print(table(["method", "head parameters", "numbers remembered", "ms a step", "over kd alone"], rows))


class Run:
    """One method's compiled step, its sizes, and its last loss."""

    def __init__(
        self, student: models.Network, teacher: models.Network, losses: dict, teacher_variables: Any, batch: dict
    ):
        weights = dict.fromkeys(losses, optax.constant_schedule(1.0))
        optimizer = optimizers.create("adamw", lambda _: 1e-4)
        init = jax.jit(lambda key: init_state(key, student, {"": teacher}, losses, optimizer, use_ema=False))
        self._state, self._arguments = init(jax.random.key(0)), ({"": teacher_variables}, batch)
        step = jax.jit(make_train_step(student, {"": teacher}, losses, weights, optimizer), donate_argnums=0)
        self._step = step.lower(self._state, *self._arguments).compile()
        self.parameters, self.memory = (
            sum(leaf.size for leaf in jax.tree.leaves(variables["heads"].get("more", {})))
            for variables in (self._state.params, self._state.collections)
        )

    def step(self) -> Any:
        """Takes one step and returns the new state."""
        self._state, metrics = self._step(self._state, *self._arguments)
        self.loss = metrics["loss"]
        return self._state


if __name__ == "__main__":
    main()

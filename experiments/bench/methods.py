"""What each method costs beside plain KD: trained parameters, memory, and the time of a training step.

    python -m experiments.bench.methods

Each step has the cross-entropy, `kd`, and one method more. The methods take turns, so that a machine that slows down
slows all of them down; times of one run are comparable with one another alone.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lfcc_jax import methods, models
from lfcc_jax.training import optimizer as optimizers
from lfcc_jax.training.report import table
from lfcc_jax.training.state import init_state
from lfcc_jax.training.step import make_train_step

EXAMPLES = 50_000  # in the memory of `crd_bank`: as many as CIFAR-100 has


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--student", default="resnet_nano")
    parser.add_argument("--teacher", default="vit_nano")
    parser.add_argument("--image_size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    student, teacher = (models.create(name, 100, options.image_size) for name in (options.student, options.teacher))
    taught = jax.jit(teacher.init)(jax.random.key(1), jnp.zeros(teacher.image_shape()))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (options.batch, *student.image_shape()[1:]), np.uint8),
        "label": rng.integers(0, 100, options.batch, np.int32),
        "index": rng.choice(EXAMPLES, options.batch, replace=False).astype(np.int32),
    }
    cases: dict[str, dict[str, Any]] = {"kd alone": {}}
    cases |= {name: {} for name in methods.list_methods() if name not in ("cross_entropy", "kd")}
    cases["crd_bank"] = {"examples": EXAMPLES}
    cases["ofa, attention"] = {"branch": "attention"}

    runs = {}
    for name, settings in cases.items():
        losses = {other: methods.create(other) for other in ("cross_entropy", "kd")}
        if name != "kd alone":
            losses["more"] = methods.create(name.split(",")[0], **settings)
        runs[name] = Run(student, teacher, losses, taught, batch)
    for _ in range(options.rounds):
        for run in runs.values():
            run.step()

    floor = runs["kd alone"].best
    lines = [
        [name, f"{run.parameters:,}", f"{run.memory:,}", f"{1e3 * run.best:.1f}", f"{run.best / floor:.2f}"]
        for name, run in sorted(runs.items(), key=lambda item: item[0] != "kd alone")
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(student.variable_shapes()["params"]))
    print(
        f"{options.student} ({size:,} parameters) taught by {options.teacher}, images of {options.image_size} pixels, "
        f"batch {options.batch}, float32; best of {options.rounds} steps on {jax.devices()[0].device_kind}, "
        f"jax {jax.__version__}\n"
    )
    print(table(["method", "head parameters", "numbers remembered", "ms a step", "over kd alone"], lines))


class Run:
    """One method's compiled step, its sizes, and its best time so far in seconds."""

    def __init__(self, student: models.Network, teacher: models.Network, losses: dict, taught: Any, batch: dict):
        weights = dict.fromkeys(losses, optax.constant_schedule(1.0))
        optimizer = optimizers.create("adamw", lambda _: 1e-4)
        init = jax.jit(lambda key: init_state(key, student, teacher, losses, optimizer, use_ema=False))
        self._state, self._arguments = init(jax.random.key(0)), (taught, batch)
        step = jax.jit(make_train_step(student, teacher, losses, weights, optimizer), donate_argnums=0)
        self._step = step.lower(self._state, *self._arguments).compile()
        self.parameters, self.memory = (
            sum(leaf.size for leaf in jax.tree.leaves(variables["heads"].get("more", {})))
            for variables in (self._state.params, self._state.collections)
        )
        self.best = np.inf

    def step(self) -> None:
        """Takes one step and times it."""
        began = time.perf_counter()
        self._state, metrics = jax.block_until_ready(self._step(self._state, *self._arguments))
        self.best = min(self.best, time.perf_counter() - began)
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss is {metrics['loss']}")


if __name__ == "__main__":
    main()

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lfcc_jax import methods, models
from lfcc_jax.methods import TeacherOutput
from lfcc_jax.training import optimizer as optimizers
from lfcc_jax.training.sharding import create_mesh, replicated, to_global, weight_shardings
from lfcc_jax.training.state import init_state
from lfcc_jax.training.step import averaged, make_train_step

SMALL = {"resnet_pico": {"widths": (4, 4, 8, 8)}, "vit_pico": {"width": 12, "depth": 4}, "mixer_pico": {"width": 12}}


def network(name, **overrides):
    return models.create(name, 10, 8, image_channels=1, **(SMALL[name] | overrides))


def batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (size, 8, 8, 1), np.uint8), "label": rng.integers(0, 10, size, np.int32)}


def trained_batch_stats(variables):
    """Returns variables with running statistics that differ from a batch's, as in a trained network."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x * 1.5 + 0.1 if path[0].key == "batch_stats" else x, variables
    )


class Run:
    """A teacher, a student and a jitted step on a mesh."""

    def __init__(self, mesh, student="resnet_pico", teacher="vit_pico", ema_decay=0.0, weights=None, dropout=0.1, **kd):
        self.mesh = mesh
        self.student = network(student, dropout=dropout)
        self.teacher = network(teacher, dropout=0.3)
        images = jnp.zeros((1, 8, 8, 1))
        variables = trained_batch_stats(jax.jit(self.teacher.init)(jax.random.key(1), images))
        self.teacher_variables = jax.device_put(variables, weight_shardings(variables, mesh, min_size=64))
        self.losses = {"cross_entropy": methods.create("cross_entropy"), "kd": methods.create("kd", **kd)}
        self.losses["lfcc"] = methods.create("lfcc", width=8, stages=("stage2", "stage4"), grids=(1, 2))
        self.weights = {name: optax.constant_schedule(1.0) for name in self.losses} | (weights or {})
        self.optimizer = optimizers.create("sgd", lambda _: 0.1, momentum=0.9)

        def init(key):
            return init_state(key, self.student, {"": self.teacher}, self.losses, self.optimizer, use_ema=ema_decay > 0)

        placement = weight_shardings(jax.eval_shape(init, jax.random.key(0)), mesh, min_size=64)
        self.state = self.initial = jax.jit(init, out_shardings=placement)(jax.random.key(0))
        networks = self.student, {"": self.teacher}
        step = make_train_step(*networks, self.losses, self.weights, self.optimizer, ema_decay)
        self.jitted = jax.jit(step, out_shardings=(placement, replicated(mesh)))

    def start(self):
        self.state = self.initial
        return self

    def step(self, seed=0):
        self.state, metrics = self.jitted(self.state, {"": self.teacher_variables}, to_global(batch(seed), self.mesh))
        return jax.device_get(metrics)


def run_of(shape=(8, 1), student="resnet_pico", teacher="vit_pico", dropout=0.1):
    return compiled(shape, student, teacher, dropout).start()


@functools.cache
def compiled(shape, student, teacher, dropout):
    return Run(create_mesh(*shape), student, teacher, dropout=dropout)


@pytest.mark.parametrize(
    "student", ["resnet_pico", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("vit_pico", "mixer_pico"))]
)
def test_step_is_the_same_on_one_device_and_on_eight(student):
    shapes = [(1, 1), (2, 4)] + [(8, 1)] * (student == "resnet_pico")
    runs = [run_of(shape, student) for shape in shapes]
    metrics = [run.step() for run in runs]
    for other, run in zip(metrics[1:], runs[1:], strict=True):
        for name, value in metrics[0].items():
            np.testing.assert_allclose(other[name], value, rtol=2e-5, err_msg=name)
        # One SGD step: parameters differ by 0.1 times a float32 rounding of their gradients, whose norm is near 10.
        for x, y in zip(jax.tree.leaves(runs[0].state.student), jax.tree.leaves(run.state.student), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_control_another_batch_gives_another_loss():
    run, other = run_of((1, 1)), run_of()
    assert abs(run.step(0)["loss"] / other.step(1)["loss"] - 1) > 1e-3


@pytest.mark.parametrize("teacher", ["resnet_pico", "vit_pico"])
def test_teacher_runs_in_evaluation_mode_and_never_changes(teacher):
    run = run_of(teacher=teacher)
    before = jax.tree.map(np.array, run.teacher_variables)
    metrics = [run.step(seed) for seed in range(3)]
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, run.teacher_variables))
    # With dropout or batch statistics, the teacher's loss on the same images would differ.
    fresh = run_of(teacher=teacher)
    images = jnp.asarray(batch(0)["image"] / np.float32(255))
    target = jax.jit(fresh.teacher.apply)(fresh.teacher_variables, images).logits
    in_training = jax.jit(functools.partial(fresh.student.apply, train=True, mutable=["batch_stats"]))
    rngs = {"dropout": jax.random.split(jax.random.fold_in(fresh.state.rng, 0))[0]}
    student, _ = in_training(fresh.state.student, images, rngs=rngs)
    expected = fresh.losses["kd"].apply({}, {}, student, TeacherOutput(target, {}, {})).mean()
    np.testing.assert_allclose(metrics[0]["kd"], expected, rtol=1e-5)


def test_control_a_teacher_in_training_mode_gives_other_logits_and_statistics():
    run = run_of(teacher="resnet_pico")
    images = jnp.asarray(batch()["image"] / np.float32(255))
    variables = run.teacher_variables
    evaluation = jax.jit(run.teacher.apply)(variables, images).logits
    in_training = jax.jit(functools.partial(run.teacher.apply, train=True, mutable=["batch_stats"]))
    training, updates = in_training(variables, images, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(evaluation, training.logits, rtol=1e-2)
    assert not np.allclose(variables["batch_stats"]["stem_norm"]["mean"], updates["batch_stats"]["stem_norm"]["mean"])


def test_teacher_is_an_argument_of_the_step_and_not_part_of_the_state():
    run = run_of()
    wide = {"image": np.zeros((8, 8, 8, 1), np.uint8), "label": np.zeros(8, np.int32)}
    text = run.jitted.lower(run.state, {"": run.teacher_variables}, wide).as_text()
    kernel = run.teacher_variables["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    inside = jax.jit(lambda state, batch: run.jitted(state, {"": run.teacher_variables}, batch))
    # If closed over, the teacher's weights become constants in the program's text.
    assert len(inside.lower(run.state, wide).as_text()) > len(text) + 4 * kernel.size
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(run.state)}
    assert not [path for path in paths if "blocks']['attn" in path]


def test_loss_is_the_weighted_sum_of_methods_with_scheduled_weights():
    ramp = optax.linear_schedule(0.0, 1.0, 4)
    run = Run(create_mesh(), weights={"kd": optax.constant_schedule(0.25), "lfcc": ramp}, temperature=2.0)
    for step in range(3):
        m = run.step(step)
        np.testing.assert_allclose(m["loss"], m["cross_entropy"] + 0.25 * m["kd"] + step / 4 * m["lfcc"], rtol=1e-5)


def test_step_updates_student_heads_and_running_statistics():
    run = run_of()
    before = jax.tree.map(np.array, (run.state.student, run.state.params["heads"]["lfcc"]))
    run.step(0)
    run.step(1)  # zero-initialized norms block some gradients in the first step
    after = jax.tree.map(np.array, (run.state.student, run.state.params["heads"]["lfcc"]))
    unchanged = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if np.array_equal(x, y)
    ]
    # LFCC's codes are standardized, which subtracts the last bias of their projectors.
    assert [leaf for leaf in unchanged if "['lfcc']" not in leaf or not leaf.endswith("['out']['bias']")] == []


def test_moving_average_follows_weights_and_statistics():
    run = Run(create_mesh(), ema_decay=0.9)
    average = jax.tree.map(np.array, run.state.student)
    for seed in range(3):
        run.step(seed)
        average = jax.tree.map(lambda a, x: 0.9 * a + 0.1 * np.array(x), average, run.state.student)
    for x, y in zip(jax.tree.leaves(run.state.evaluated), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_moving_average_of_bfloat16_weights_is_wider_and_copies_counters():
    weights = {"w": jnp.full((3,), 1.1, jnp.bfloat16), "count": jnp.int32(7)}
    average = {"w": jnp.ones((3,)), "count": jnp.int32(0)}
    for _ in range(100):
        average = averaged(weights, average, 1 - 0.99)
    expected = float(weights["w"][0]) + (1 - float(weights["w"][0])) * 0.99**100
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5)
    assert average["count"] == 7


def test_training_on_one_batch_lowers_its_loss():
    run = run_of((1, 1), dropout=0.0)
    losses = [run.step(0)["loss"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_gradient_matches_finite_differences():
    run = run_of((1, 1), dropout=0.0)
    for seed in range(2):
        run.step(seed)  # with zero-initialized norms, many inputs of ReLU start at its kink
    data = to_global(batch(), run.mesh)
    params = run.state.params
    fresh = run.state.replace(opt_state=run.optimizer.init(params))
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    size = float(optax.tree.norm(direction))

    def loss_at(distance):
        moved = jax.tree.map(lambda x, d: x + distance / size * d, params, direction)
        return float(run.jitted(run.state.replace(params=moved), {"": run.teacher_variables}, data)[1]["loss"])

    # With plain SGD, momentum at zero and learning rate 0.1, the update is -0.1 times the gradient (Nesterov: 1.9).
    after = run.jitted(fresh, {"": run.teacher_variables}, data)[0].params
    gradient = jax.tree.map(lambda new, old: (old - new) / 0.19, after, params)
    slope = sum(
        float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    measured = (loss_at(0.005) - loss_at(-0.005)) / 0.01
    np.testing.assert_allclose(slope / size, measured, rtol=0.003, atol=0.0003)

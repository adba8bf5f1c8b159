"""A training step of every pair of the benchmark, with small networks and the config's losses and optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar100, imagenet
from configs.benchmark import CIFAR100_PAIRS, IMAGENET_PAIRS
from lfcc_jax import data
from lfcc_jax.training.config import as_dict, read_config
from lfcc_jax.training.distillation import build
from lfcc_jax.training.sharding import create_mesh, replicated, to_global


def name_of(config, *rest):
    return "-".join([config.__name__.rpartition(".")[2], *rest])


PAIRS = [(cifar100, *pair) for pair in CIFAR100_PAIRS] + [(imagenet, *pair) for pair in IMAGENET_PAIRS]
METHODS = ("lfcc", "kd", "ofa", "scratch")
STUDENTS = list(dict.fromkeys(student for _, _, student in PAIRS))
# Students of four kinds, with their first teacher, in both configs; -m exhaustive runs all pairs by all methods.
DEFAULT = ("resnet18", "mobilenetv2_100", "swin_nano", "resmlp_12")
FIRST = {student: next(pair for pair in PAIRS if pair[2] == student) for student in STUDENTS}
RUNS = [
    pytest.param(
        *pair,
        method,
        marks=()
        if pair[2] in DEFAULT and pair == FIRST[pair[2]] and method == METHODS[STUDENTS.index(pair[2]) % 3]
        else pytest.mark.exhaustive,
        id=name_of(*pair, method),
    )
    for i, pair in enumerate(PAIRS)
    for method in METHODS
    # Pairs with the same student are equal without a teacher.
    if method != "scratch" or (pair[0], pair[2]) not in {(config, student) for config, _, student in PAIRS[:i]}
]


def random_arrays(shapes):
    """Returns arrays of the given shapes with small positive random numbers; integers become zero."""
    rng = np.random.default_rng(0)

    def array(shape):
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.asarray(np.abs(rng.normal(0, 0.1, shape.shape)), shape.dtype)

    return jax.tree.map(array, shapes)


@pytest.mark.parametrize(("config", "teacher", "student", "method"), RUNS)
def test_pair_takes_a_training_step(config, teacher, student, method):
    run = read_config(config.get_config(f"teacher={teacher},student={student},method={method},runlocal"))
    mesh = create_mesh(data=2)
    inputs = data.open_inputs(**as_dict(run.data))
    distillation = build(run, inputs.images)
    augment = inputs.augmentation
    if (config, teacher, student) != (cifar100, "convnext_tiny", "resmlp_12"):
        # RandAugment does not depend on the networks, and takes as long to compile as the rest.
        augment = dataclasses.replace(augment, policy=None)
    step = distillation.train_step(mesh, augment)

    # Random arrays, because initialization takes longer to compile than the step.
    state = random_arrays(distillation.state_shapes())
    teacher_variables = {name: random_arrays(t.variable_shapes()) for name, t in distillation.teachers.items()}
    state = jax.device_put(state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state)), replicated(mesh))
    before = jax.device_get(state.student["params"])
    batch = to_global(next(data.train_batches(inputs.train, run.batch_size, seed=0)), mesh)
    state, metrics = step(state, teacher_variables, batch)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    expected = {"scratch": set(), "kd": {"kd"}, "ofa": {"ofa/logits", "ofa/exits"}, "lfcc": {"kd", "lfcc"}}[method]
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "cross_entropy", *expected}
    after = jax.device_get(state.student["params"])
    changed = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    # Biases of MobileNetV2 before a convolution and a normalization have no effect, since the latter removes them.
    assert np.mean(changed) > 0.85

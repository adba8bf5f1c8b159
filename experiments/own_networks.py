"""A student in Flax NNX and a teacher in Equinox, for `--config.student.name=experiments/own_networks.py:make_student`.

docs/your_network.md explains what such a file contains.
"""

import itertools

import equinox as eqx
import jax
from flax import nnx

from lfcc_jax.models import adapters

STRIDES = (1, 2, 2, 1)


class Student(nnx.Module):
    """A small CNN with four stages."""

    def __init__(self, num_classes: int, channels: int, width: int, rngs: nnx.Rngs):
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        sizes = list(zip(itertools.pairwise(widths), STRIDES, strict=True))
        self.convs = nnx.List([nnx.Conv(*pair, (3, 3), stride, rngs=rngs) for pair, stride in sizes])
        self.norms = nnx.List([nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for width in widths[1:]])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps images `[batch, height, width, channels]` to logits and features."""
        features = {}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            features[f"stage{i}"] = x = nnx.relu(norm(conv(x)))
        features["pooled"] = x.mean((1, 2))
        return self.head(self.dropout(features["pooled"])), features


class Teacher(eqx.Module):
    """A wider CNN, which maps one image `[channels, height, width]`."""

    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.BatchNorm]
    head: eqx.nn.Linear

    def __init__(self, num_classes: int, channels: int, key: jax.Array):
        widths = (channels, 32, 64, 128, 128)
        *keys, last = jax.random.split(key, 5)
        sizes = zip(itertools.pairwise(widths), STRIDES, keys, strict=True)
        self.convs = [eqx.nn.Conv2d(*pair, 3, stride, padding=1, key=k) for pair, stride, k in sizes]
        self.norms = [eqx.nn.BatchNorm(width, "batch", momentum=0.9, mode="batch") for width in widths[1:]]
        self.head = eqx.nn.Linear(widths[-1], num_classes, key=last)

    def __call__(
        self, x: jax.Array, state: eqx.nn.State
    ) -> tuple[tuple[jax.Array, dict[str, jax.Array]], eqx.nn.State]:
        """Returns logits and features, and the statistics of BatchNorm."""
        features = {}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            x, state = norm(conv(x), state)
            features[f"stage{i}"] = x = jax.nn.relu(x)
        features["pooled"] = x.mean((1, 2))
        return (self.head(features["pooled"]), features), state


def make_student(num_classes: int, channels: int, rngs: nnx.Rngs, width: int = 8) -> Student:
    """Returns the student; the run initializes it, because it takes `rngs`."""
    return Student(num_classes, channels, width, rngs)


def make_teacher(num_classes: int, channels: int, key: jax.Array) -> adapters.Adapter:
    """Returns the teacher, to be trained."""
    return adapters.from_equinox(*eqx.nn.make_with_state(Teacher)(num_classes, channels, key))


def load_teacher(num_classes: int, channels: int, path: str) -> adapters.Adapter:
    """Returns a teacher with the weights that `eqx.tree_serialise_leaves(path, (module, state))` wrote."""
    made = eqx.nn.make_with_state(Teacher)(num_classes, channels, jax.random.key(0))
    return adapters.from_equinox(*eqx.tree_deserialise_leaves(path, made))

"""LFCC in a Flax NNX training loop: its parameters are part of a module."""

import jax
import optax
from flax import nnx

from lfcc_jax import lfcc_init, lfcc_loss


class Network(nnx.Module):  # your own: anything that returns {stage: [batch, height, width, channels]}
    """Two convolutions; returns the maps of images `[batch, height, width, 3]` by stage."""

    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), strides=2, rngs=rngs) for i, o in ((3, 16), (16, 32))])

    def __call__(self, x):
        stage1 = nnx.relu(self.convs[0](x))
        return {"stage1": stage1, "stage2": nnx.relu(self.convs[1](stage1))}


class Distilled(nnx.Module):
    """A student and LFCC's parameters, which are trained with it."""

    def __init__(self, student, key):
        self.student, channels = student, {"stage1": 16, "stage2": 32}
        self.lfcc = nnx.data(jax.tree.map(nnx.Param, lfcc_init(key, channels, channels, width=32)))


@nnx.jit
def train_step(model, optimizer, teacher, images):
    """Takes one step in place, and returns the loss before it."""

    def loss(model):
        return lfcc_loss(nnx.to_pure_dict(nnx.state(model.lfcc)), model.student(images), teacher(images)).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def main(steps=20):
    """Returns the loss of each of `steps` steps on 16 random images."""
    teacher, model = Network(nnx.Rngs(0)), Distilled(Network(nnx.Rngs(1)), jax.random.key(2))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    images = jax.random.uniform(jax.random.key(3), (16, 16, 16, 3))
    return [float(train_step(model, optimizer, teacher, images)) for _ in range(steps)]

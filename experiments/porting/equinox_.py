"""LFCC in an Equinox training loop: channels-first maps are transposed to channels-last."""

import equinox as eqx
import jax
import optax

from lfcc_jax import lfcc_init, lfcc_loss

CHANNELS, optimizer = {"stage1": 16, "stage2": 32}, optax.adam(1e-3)


class Network(eqx.Module):  # your own: anything that returns {stage: [height, width, channels]} of one image
    """Two convolutions; returns the maps of one image `[height, width, 3]` by stage."""

    layers: list[eqx.nn.Conv2d]

    def __init__(self, key):
        self.layers = [eqx.nn.Conv2d(i, o, 3, 2, 1, key=key) for i, o in ((3, 16), (16, 32))]

    def __call__(self, image):
        stage1 = jax.nn.relu(self.layers[0](image.transpose(2, 0, 1)))
        return {"stage1": stage1.transpose(1, 2, 0), "stage2": jax.nn.relu(self.layers[1](stage1)).transpose(1, 2, 0)}


@eqx.filter_jit
def train_step(trained, opt_state, teacher, images):
    """Returns the student and LFCC's parameters after one step, the optimizer's state, and the loss before it."""

    def loss(trained):
        return lfcc_loss(trained["lfcc"], jax.vmap(trained["student"])(images), jax.vmap(teacher)(images)).mean()

    value, grads = eqx.filter_value_and_grad(loss)(trained)
    updates, opt_state = optimizer.update(grads, opt_state)
    return eqx.apply_updates(trained, updates), opt_state, value


def main(steps=20):
    """Returns the loss of each of `steps` steps on 16 random images."""
    teacher, images = Network(jax.random.key(0)), jax.random.uniform(jax.random.key(3), (16, 16, 16, 3))
    trained = {"student": Network(jax.random.key(1)), "lfcc": lfcc_init(jax.random.key(2), CHANNELS, CHANNELS, 32)}
    opt_state, losses = optimizer.init(eqx.filter(trained, eqx.is_array)), []
    for _ in range(steps):
        trained, opt_state, value = train_step(trained, opt_state, teacher, images)
        losses.append(float(value))
    return losses

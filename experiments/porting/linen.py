"""LFCC in a Flax Linen training loop: its parameters are trained with the student's."""

import flax.linen as nn
import jax
import optax

from lfcc_jax import lfcc_init, lfcc_loss

CHANNELS = {"stage1": 16, "stage2": 32}
optimizer = optax.adam(1e-3)


class Network(nn.Module):  # your own: anything that returns {stage: [batch, height, width, channels]}
    """Two convolutions; returns the maps of images `[batch, height, width, 3]` by stage."""

    @nn.compact
    def __call__(self, x):
        stage1 = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return {"stage1": stage1, "stage2": nn.relu(nn.Conv(32, (3, 3), strides=2)(stage1))}


@jax.jit
def train_step(trained, opt_state, teacher, images):
    """Returns the student and LFCC's parameters after one step, the optimizer's state, and the loss before it."""

    def loss(trained):
        student_features = Network().apply(trained["student"], images)
        return lfcc_loss(trained["lfcc"], student_features, Network().apply(teacher, images)).mean()

    value, grads = jax.value_and_grad(loss)(trained)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(trained, updates), opt_state, value


def main(steps=20):
    """Returns the loss of each of `steps` steps on 16 random images."""
    images = jax.random.uniform(jax.random.key(3), (16, 16, 16, 3))
    teacher, student = (Network().init(jax.random.key(seed), images) for seed in (0, 1))
    trained = {"student": student, "lfcc": lfcc_init(jax.random.key(2), CHANNELS, CHANNELS, width=32)}
    opt_state, losses = optimizer.init(trained), []
    for _ in range(steps):
        trained, opt_state, value = train_step(trained, opt_state, teacher, images)
        losses.append(float(value))
    return losses

"""LFCC in a bare JAX training loop: parameters are pytrees, a step is a function."""

import jax

from lfcc_jax import lfcc_init, lfcc_loss

CHANNELS = {"stage1": 16, "stage2": 32}


def network(params, images):  # your own: anything that returns {stage: [batch, height, width, channels]}
    """Returns the feature maps of images `[batch, height, width, 3]` by stage."""
    x, features = images, {}
    for stage in CHANNELS:
        x = jax.lax.conv_general_dilated(x, params[stage], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        features[stage] = x = jax.nn.relu(x)
    return features


def network_init(key):
    """Returns random kernels `[3, 3, inputs, outputs]` by stage."""
    keys, init = jax.random.split(key), jax.nn.initializers.he_normal()
    return {"stage1": init(keys[0], (3, 3, 3, 16)), "stage2": init(keys[1], (3, 3, 16, 32))}


@jax.jit
def train_step(trained, teacher, images):
    """Returns the student and LFCC's parameters after one step of gradient descent, and the loss before it."""

    def loss(trained):
        return lfcc_loss(trained["lfcc"], network(trained["student"], images), network(teacher, images)).mean()

    value, grads = jax.value_and_grad(loss)(trained)
    return jax.tree.map(lambda p, g: p - 0.3 * g, trained, grads), value


def main(steps=20):
    """Returns the loss of each of `steps` steps on 16 random images."""
    teacher, lfcc = network_init(jax.random.key(0)), lfcc_init(jax.random.key(2), CHANNELS, CHANNELS, width=32)
    trained = {"student": network_init(jax.random.key(1)), "lfcc": lfcc}
    images, losses = jax.random.uniform(jax.random.key(3), (16, 16, 16, 3)), []
    for _ in range(steps):
        trained, value = train_step(trained, teacher, images)
        losses.append(float(value))
    return losses

"""Networks of a user, in other libraries than the package's own."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from lfcc_jax.models import adapters


class NNXNet(nnx.Module):
    def __init__(self, num_classes, channels, rngs, width=4):
        widths = (channels, width, width, 2 * width, 2 * width)
        pairs = list(itertools.pairwise(widths))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), 1 + i % 2, rngs=rngs) for i, (a, b) in enumerate(pairs)])
        self.norms = nnx.List([nnx.BatchNorm(b, rngs=rngs) for _, b in pairs])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, x):
        features = {}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            features[f"stage{i}"] = x = nnx.relu(norm(conv(x)))
        features["pooled"] = x.mean((1, 2))
        return self.head(self.dropout(features["pooled"])), features


class EquinoxNet(eqx.Module):
    convs: list
    norms: list
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, num_classes, channels, key):
        widths = (channels, 4, 4, 8, 8)
        pairs = list(itertools.pairwise(widths))
        keys = jax.random.split(key, 5)
        self.convs = [eqx.nn.Conv2d(*p, 3, 1 + i % 2, padding=1, key=keys[i]) for i, p in enumerate(pairs)]
        self.norms = [eqx.nn.BatchNorm(b, "batch", mode="batch") for _, b in pairs]
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(widths[-1], num_classes, key=keys[-1])

    def __call__(self, x, state, key):
        features = {}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            x, state = norm(conv(x), state)
            features[f"stage{i}"] = x = jax.nn.relu(x)
        features["pooled"] = x.mean((1, 2))
        return (self.head(self.dropout(features["pooled"], key=key)), features), state


class LinenNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        for i, width in enumerate((4, 4, 8, 8), start=1):
            x = nn.Conv(width, (3, 3), 2 - i % 2, name=f"conv{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            self.sow("intermediates", f"stage{i}", x)
        pooled = x.mean((1, 2))
        self.sow("intermediates", "pooled", pooled)
        return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(pooled))


def tokens(params, images, train, key):
    """Four stages of tokens after a class token, with dropout."""
    patches = images.reshape(images.shape[0], -1, 4 * images.shape[-1])
    x = jnp.concatenate([jnp.ones((images.shape[0], 1, params["embed"].shape[1])), patches @ params["embed"]], 1)
    outputs = {}
    for i in range(1, 5):
        outputs[f"stage{i}"] = x = x + jnp.tanh(x @ params["blocks"][i - 1])
    outputs["pooled"] = pooled = x[:, 0] + x.mean(1)
    if train:
        pooled = pooled * jax.random.bernoulli(key, 0.5, pooled.shape).astype(pooled.dtype) * 2
    return outputs | {"logits": pooled @ params["head"]}


def token_params(key):
    keys = jax.random.split(key, 6)
    return {
        "embed": jax.random.normal(keys[0], (4, 8)),
        "blocks": [0.3 * jax.random.normal(k, (8, 8)) for k in keys[1:5]],
        "head": jax.random.normal(keys[5], (8, 10)),
    }


# -- Factories, named in configs ---------------------------------------------------------------------------------------


def make_student(num_classes, channels, rngs, width: int = 4):
    return NNXNet(num_classes, channels, rngs, width)


def make_teacher():
    """Has its weights, and no classifier."""
    return adapters.from_equinox(*eqx.nn.make_with_state(EquinoxNet)(10, 1, jax.random.key(7)))


def make_embedding(features="all"):
    def embed(params, images):
        outputs = tokens(params, images, False, None)
        return {name: x for name, x in outputs.items() if name != "logits"}

    params = token_params(jax.random.key(0))
    if features == "none":
        return adapters.from_function(
            lambda params, images: images.mean((1, 2)) @ params, jnp.ones((1, 4)), logits=False
        )
    return adapters.from_function(embed, params, prefix_tokens=1 if features == "all" else 0)


def make_nothing():
    return "a string"


def make_error(num_classes):
    raise KeyError(f"no weights for {num_classes} classes")


def make_numpy(num_classes):
    import numpy as np

    return adapters.from_function(lambda params, images: np.asarray(images) @ params, jnp.ones((3, 3)))


def make_other_classes(logits: bool = True):
    def classify(params, images):
        return images.mean((1, 2)) @ params, {"pooled": images.mean((1, 2))}

    return adapters.from_function(classify, jnp.ones((1, 7)), logits=logits)


def make_one_for_all():
    return adapters.from_function(lambda params, images: images.mean((0, 1, 2))[None] @ params, jnp.ones((1, 10)))


def make_nan():
    return adapters.from_function(lambda params, x: x.mean((1, 2)) @ params, jnp.full((1, 10), jnp.nan))

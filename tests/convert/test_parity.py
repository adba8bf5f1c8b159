"""Every network against timm's float64 outputs on weights derived from tensor names. Torch is not needed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, DEEPER, NAMES, NEWER_FULL, NUM_CLASSES, samples
from random_weights import random_images, random_state_dict

from lfcc_jax import convert, models
from lfcc_jax.errors import UserError
from lfcc_jax.models import convnext, convolution, layers, mixer, swin, tokens, vit

GOLDEN = np.load(Path(__file__).parent.parent / "goldens" / "timm.npz")
TOLERANCE = 1e-5


def state_of(name, size=None):
    shapes = models.create(name, NUM_CLASSES, size).variable_shapes()
    state = convert.to_timm(name, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), image_size=size)
    return random_state_dict({key: value.shape for key, value in state.items()})


def errors(name, size, train=False, state=None, **overrides):
    """Returns the relative error (of the norm) of logits and stages."""
    variables = convert.from_timm(name, state_of(name, size) if state is None else state, image_size=size)
    network = models.create(name, NUM_CLASSES, size, **overrides)
    apply = jax.jit(lambda variables, images: network.apply(variables, images, train, mutable=["batch_stats"])[0])
    logits, features = apply(variables, random_images(size))
    case = f"{name}@{size}{'/train' if train else ''}"
    given = {"logits": logits} | {f"stage{s}": samples(features[f"stage{s}"]) for s in (1, 2, 3, 4)}
    result = {}
    for key, value in given.items():
        expected = GOLDEN[f"{case}/{key}"].astype(np.float64)
        result[key] = float(np.linalg.norm(np.asarray(value, np.float64) - expected) / np.linalg.norm(expected))
    return result


@pytest.mark.parametrize(
    ("name", "size", "train"),
    [pytest.param(*case, marks=pytest.mark.exhaustive if case[0] in DEEPER else ()) for case in CASES],
)
def test_network_matches_timm(name, size, train):
    relative_errors = errors(name, size, train)
    if train:
        # BatchNorm over few values amplifies float32 rounding from layer to layer (in torch ten times more).
        assert relative_errors["logits"] < TOLERANCE
        with jax.enable_x64(True):
            relative_errors = errors(name, size, train, dtype=jnp.float64)
    assert max(relative_errors.values()) < TOLERANCE, relative_errors


def test_cases_cover_every_network_for_224_pixels_and_of_timm():
    covered = {*NAMES, *(name for name, _, _ in NEWER_FULL)}
    assert sorted(covered) == [
        name for name in models.list_models() if default_image_size(name) == 224 or models.variant(name).in_timm
    ]


def default_image_size(name):
    try:
        return models.create(name, 1).image_size
    except UserError:
        return None


def _tanh_gelu(monkeypatch):
    monkeypatch.setattr(layers, "gelu", lambda x: jax.nn.gelu(x, approximate=True))


def _layer_norm_epsilon(monkeypatch):
    for family in (convnext, mixer, swin, tokens, vit):
        right = family.LayerNorm
        wrong = lambda epsilon, dtype, name, right=right: right(10 * epsilon, dtype, name=name)  # noqa: E731
        monkeypatch.setattr(family, "LayerNorm", wrong)


def _batch_norm_epsilon(monkeypatch):
    monkeypatch.setattr(layers, "BATCH_NORM_EPSILON", 1e-3)


def _same_padding(monkeypatch):
    def same(x, kernel, stride, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    monkeypatch.setattr(convolution, "_convolution", same)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("convnext_tiny", _tanh_gelu),
        ("deit_tiny_patch16_224", _tanh_gelu),
        ("mixer_s16_224", _tanh_gelu),
        ("resmlp_12_224", _tanh_gelu),
        ("swin_pico_patch4_window7_224", _tanh_gelu),
        ("convnext_tiny", _layer_norm_epsilon),
        ("deit_tiny_patch16_224", _layer_norm_epsilon),
        ("swin_pico_patch4_window7_224", _layer_norm_epsilon),
        ("mixer_s16_224", _layer_norm_epsilon),
        ("resnet18", _batch_norm_epsilon),
        ("mobilenetv2_100", _batch_norm_epsilon),
        ("resnet18", _same_padding),
    ],
)
def test_control_a_slightly_wrong_network_exceeds_the_tolerance(monkeypatch, name, wrong):
    state = state_of(name)
    wrong(monkeypatch)
    relative_errors = errors(name, 224, state=state)
    assert relative_errors["logits"] > TOLERANCE
    assert relative_errors["stage4"] > TOLERANCE


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_pico_patch4_window7_224"])
def test_control_exchanged_query_and_key_exceed_the_tolerance(name):
    state = state_of(name)
    for key, value in state.items():
        if ".qkv." in key:
            query, key_, value_ = np.split(value, 3)
            state[key] = np.concatenate([key_, query, value_])
    assert errors(name, 224, state=state)["logits"] > TOLERANCE


@pytest.mark.parametrize("name", ["convnext_tiny", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("overrides", [{"scan": True}, {"remat": True}], ids=str)
def test_scan_and_remat_do_not_change_parity_with_timm(name, overrides):
    assert max(errors(name, 224, **overrides).values()) < TOLERANCE


def test_bfloat16_outputs_are_close_to_timm():
    relative_errors = errors("deit_tiny_patch16_224", 224, dtype=jnp.bfloat16)
    assert 1e-3 < relative_errors["logits"] < 3e-2

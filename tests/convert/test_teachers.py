"""Teachers without a classifier (DINOv2, DINOv3, SigLIP 2) against timm's float64 outputs, as in `test_parity.py`."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import FULL_TEACHERS, NUM_CLASSES, TEACHERS, samples
from flax.traverse_util import flatten_dict, unflatten_dict
from random_weights import random_images, random_state_dict

from lfcc_jax import convert, models
from lfcc_jax.convert.positions import resize_positions
from lfcc_jax.models import layers, rotary, vit

GOLDEN = np.load(Path(__file__).parent.parent / "goldens" / "timm_teachers.npz")
TOLERANCE = 1e-5
CASES = {name: (size, changed) for name, size, changed in TEACHERS}
REDUCED = {"width": 24, "depth": 4, "heads": 3, "taps": (1, 2, 3, 4)}
VITS = [name for name in CASES if name.startswith("vit")]


def state_of(name, size, num_classes=0, **changed):
    """Returns random tensors for a network, by timm's names."""
    shapes = models.create(name, num_classes, size, **changed).variable_shapes()
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    state = convert.to_timm(name, zeros, image_size=size, **changed)
    return random_state_dict({key: value.shape for key, value in state.items()})


def errors(name, size, variables, num_classes=0, **changed):
    """Returns the relative error (of the norm) of logits, if there are classes, pooled vector and stages."""
    network = models.create(name, num_classes, size, **changed)
    logits, features = jax.jit(network.apply)(variables, random_images(size))
    assert (logits is None) == (num_classes == 0)
    given = {key: samples(value) for key, value in features.items()} | ({"logits": logits} if num_classes else {})
    result = {}
    for key, value in given.items():
        expected = GOLDEN[f"{name}@{size}/{key}"].astype(np.float64)
        result[key] = float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
    return result


@functools.cache
def converted(name, num_classes=0):
    size, changed = CASES[name]
    return convert.from_timm(name, state_of(name, size, num_classes, **changed), image_size=size, **changed)


def errors_of(name, variables=None, **overrides):
    """Returns the errors of one of the small cases."""
    size, changed = CASES[name]
    return errors(name, size, converted(name) if variables is None else variables, **changed, **overrides)


@pytest.mark.parametrize(("name", "size", "changed"), TEACHERS)
def test_teacher_matches_timm(name, size, changed):
    assert "head" not in converted(name)["params"]
    relative_errors = errors_of(name)
    assert sorted(relative_errors) == ["pooled", "stage1", "stage2", "stage3", "stage4"]
    assert max(relative_errors.values()) < TOLERANCE, relative_errors


@pytest.mark.parametrize(
    ("name", "size", "changed"),
    [TEACHERS[-1], *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in FULL_TEACHERS)],
)
def test_teacher_with_a_classifier_matches_timm(name, size, changed):
    variables = convert.from_timm(name, state_of(name, size, NUM_CLASSES, **changed), image_size=size, **changed)
    relative_errors = errors(name, size, variables, NUM_CLASSES, **changed)
    assert len(relative_errors) == 6
    assert max(relative_errors.values()) < TOLERANCE, relative_errors


@pytest.mark.parametrize("overrides", [{"scan": True}, {"remat": True}], ids=str)
def test_scan_and_remat_do_not_change_parity_with_timm(overrides):
    assert max(errors_of("vit_small_patch16_dinov3", **overrides).values()) < TOLERANCE


def _rotary_base(monkeypatch):
    monkeypatch.setattr(rotary, "BASE", 10_000.0)


def _rotary_columns_first(monkeypatch):
    right = rotary.angles
    flipped = lambda grid, n: np.roll(right(grid, n), n, axis=1)  # noqa: E731
    monkeypatch.setattr(rotary, "angles", flipped)


def _rotary_backwards(monkeypatch):
    right = rotary.angles
    monkeypatch.setattr(rotary, "angles", lambda grid, n: -right(grid, n))


def _registers_in_the_mean(monkeypatch):
    monkeypatch.setattr(vit.ViT, "pool", lambda self, x: x[:, 1:].mean(axis=1))


def _class_token_instead_of_the_mean(monkeypatch):
    monkeypatch.setattr(vit.ViT, "pool", lambda self, x: x[:, 0])


def _mean_instead_of_attention(monkeypatch):
    monkeypatch.setattr(vit.AttentionPool, "__call__", lambda self, x: x.mean(axis=1))


def _first_token_instead_of_attention(monkeypatch):
    monkeypatch.setattr(vit.AttentionPool, "__call__", lambda self, x: x[:, 0])


def _tanh_gelu(monkeypatch):
    monkeypatch.setattr(layers, "gelu", lambda x: jax.nn.gelu(x, approximate=True))


@pytest.mark.parametrize(
    ("name", "wrong", "features"),
    [
        ("vit_small_patch16_dinov3", _rotary_base, "all"),
        ("vit_small_patch16_dinov3", _rotary_columns_first, "all"),
        ("vit_small_patch16_dinov3", _rotary_backwards, "all"),
        ("vit_small_patch16_dinov3", _registers_in_the_mean, "pooled"),
        ("vit_small_patch16_dinov3", _class_token_instead_of_the_mean, "pooled"),
        ("vit_base_patch16_siglip_224", _mean_instead_of_attention, "pooled"),
        ("vit_base_patch16_siglip_224", _first_token_instead_of_attention, "pooled"),
        ("vit_base_patch16_siglip_224", _tanh_gelu, "all"),
    ],
)
def test_control_a_slightly_wrong_teacher_exceeds_the_tolerance(monkeypatch, name, wrong, features):
    converted(name)
    wrong(monkeypatch)
    relative_errors = errors_of(name, scan=True)
    # The stages end before the pooling.
    exceeding = {key for key, value in relative_errors.items() if value > TOLERANCE}
    assert exceeding == (set(relative_errors) if features == "all" else {"pooled"})


@pytest.mark.parametrize(
    ("name", "changed", "same"),
    [
        ("vit_small_patch14_dinov2", {("blocks", "scale1", "scale"): np.ones_like}, ()),
        ("vit_small_patch14_dinov2", {("blocks", "scale2", "scale"): np.ones_like}, ()),
        ("vit_small_patch14_reg4_dinov2", {("register_tokens",): lambda x: 0 * x}, ()),
        ("vit_small_patch14_reg4_dinov2", {("pos_embed",): lambda x: np.roll(x, 1, axis=1)}, ()),
        ("vit_base_patch16_siglip_224", {("attn_pool", "latent"): lambda x: 0 * x}, ("stage1", "stage4")),
    ],
)
def test_control_wrong_parameters_exceed_the_tolerance(name, changed, same):
    variables = converted(name)
    flat = {path: changed.get(path, lambda x: x)(x) for path, x in flatten_dict(variables["params"]).items()}
    relative_errors = errors_of(name, {"params": unflatten_dict(flat)})
    for key, error in relative_errors.items():
        assert (error < TOLERANCE) == (key in same or (bool(same) and key.startswith("stage")))


@pytest.mark.parametrize("size", [4, 16])
def test_positions_of_patches_alone_are_resized_as_in_timm(size):
    resized = resize_positions(GOLDEN["positions/old"], size * size, prefix=0)
    np.testing.assert_allclose(resized, GOLDEN[f"positions/{size}"], atol=2e-6)


@pytest.mark.parametrize("num_classes", [0, 7])
@pytest.mark.parametrize("name", VITS)
def test_from_timm_and_to_timm_are_inverse_bit_for_bit(name, num_classes):
    size = 8 * models.create(name, 0).patch
    state = state_of(name, size, num_classes, **REDUCED)
    variables = convert.from_timm(name, state, image_size=size, **REDUCED)
    back = convert.to_timm(name, variables, image_size=size, **REDUCED)
    assert set(back) == set(state)
    assert ("head.weight" in state) == (num_classes > 0)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)

"""Networks newer than the benchmark (DINOv2, DINOv3, SigLIP 2, ConvNeXt V2) against timm, as in `test_parity.py`."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from cases import NEWER, NEWER_FULL, NEWER_WITH_BATCH_NORM, NUM_CLASSES, samples
from flax.traverse_util import flatten_dict, unflatten_dict
from random_weights import random_images, random_state_dict

from lfcc_jax import convert, models
from lfcc_jax.convert.__main__ import main
from lfcc_jax.convert.create_model import create_model_call
from lfcc_jax.convert.files import write_safetensors
from lfcc_jax.convert.positions import resize_positions
from lfcc_jax.export import main as export
from lfcc_jax.models import layers, registry, rotary, vit

GOLDEN = np.load(Path(__file__).parent.parent / "goldens" / "timm_newer.npz")
TOLERANCE = 1e-5
CASES = {name: (size, changed) for name, size, changed in NEWER}
REDUCED = {"width": 24, "depth": 4, "heads": 3, "taps": (1, 2, 3, 4)}
VITS = [name for name in CASES if name.startswith("vit")]


def state_of(name, size, num_classes=0, **changed):
    """Returns random tensors for a network, by timm's names."""
    shapes = models.create(name, num_classes, size, **changed).variable_shapes()
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    state = convert.to_timm(name, zeros, image_size=size, **changed)
    return random_state_dict({key: value.shape for key, value in state.items()})


def errors(name, size, variables, num_classes=0, train=False, **changed):
    """Returns the relative error (of the norm) of logits, if there are classes, pooled vector and stages."""
    network = models.create(name, num_classes, size, **changed)
    apply = jax.jit(lambda variables, images: network.apply(variables, images, train, mutable=["batch_stats"])[0])
    logits, features = apply(variables, random_images(size))
    assert (logits is None) == (num_classes == 0)
    given = {key: samples(value) for key, value in features.items() if not (train and key == "pooled")} | (
        {"logits": logits} if num_classes else {}
    )
    result = {}
    for key, value in given.items():
        expected = GOLDEN[f"{name}@{size}{'/train' if train else ''}/{key}"].astype(np.float64)
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


@pytest.mark.parametrize("name", [name for name in CASES if name != "vit_small_patch14_dinov2"])
def test_network_without_a_classifier_matches_timm(name):
    assert "head" not in converted(name)["params"]
    relative_errors = errors_of(name)
    assert sorted(relative_errors) == ["pooled", "stage1", "stage2", "stage3", "stage4"]
    assert max(relative_errors.values()) < TOLERANCE, relative_errors


@pytest.mark.parametrize(
    ("name", "size", "changed"),
    [NEWER[0], *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in NEWER_FULL)],
)
def test_network_with_a_classifier_matches_timm(name, size, changed):
    variables = convert.from_timm(name, state_of(name, size, NUM_CLASSES, **changed), image_size=size, **changed)
    relative_errors = errors(name, size, variables, NUM_CLASSES, **changed)
    assert len(relative_errors) == 6
    assert max(relative_errors.values()) < TOLERANCE, relative_errors


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NEWER_WITH_BATCH_NORM)
def test_network_matches_timm_in_training_mode(name):
    variables = convert.from_timm(name, state_of(name, 224, NUM_CLASSES))
    assert errors(name, 224, variables, NUM_CLASSES, train=True)["logits"] < TOLERANCE
    with jax.enable_x64(True):  # as in `test_parity.py`
        relative_errors = errors(name, 224, variables, NUM_CLASSES, train=True, dtype=jnp.float64)
    assert max(relative_errors.values()) < TOLERANCE, relative_errors


@pytest.mark.parametrize("overrides", [{"scan": True}, {"remat": True}], ids=str)
def test_scan_and_remat_do_not_change_parity_with_timm(overrides):
    assert max(errors_of("vit_small_patch16_dinov3", **overrides).values()) < TOLERANCE


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_base_patch16_siglip_224"])
def test_bfloat16_outputs_are_close_to_timm(name):
    assert 1e-3 < errors_of(name, scan=True, dtype=jnp.bfloat16)["pooled"] < 3e-2


def _rotary_base(monkeypatch):
    monkeypatch.setattr(rotary, "BASE", 10_000.0)


def _rotary_columns_first(monkeypatch):
    right = rotary.angles
    flipped = lambda grid, n: np.roll(right(grid, n), n, axis=1)  # noqa: E731
    monkeypatch.setattr(rotary, "angles", flipped)


def _registers_in_the_mean(monkeypatch):
    monkeypatch.setattr(vit.ViT, "pool", lambda self, x: x[:, 1:].mean(axis=1))


def _class_token_instead_of_the_mean(monkeypatch):
    monkeypatch.setattr(vit.ViT, "pool", lambda self, x: x[:, 0])


def _first_token_instead_of_attention(monkeypatch):
    monkeypatch.setattr(vit.AttentionPool, "__call__", lambda self, x: x[:, 0])


def _tanh_gelu(monkeypatch):
    monkeypatch.setattr(layers, "gelu", lambda x: jax.nn.gelu(x, approximate=True))


@pytest.mark.parametrize(
    ("name", "wrong", "features"),
    [
        ("vit_small_patch16_dinov3", _rotary_base, "all"),
        ("vit_small_patch16_dinov3", _rotary_columns_first, "all"),
        ("vit_small_patch16_dinov3", _registers_in_the_mean, "pooled"),
        ("vit_small_patch16_dinov3", _class_token_instead_of_the_mean, "pooled"),
        ("vit_base_patch16_siglip_224", _first_token_instead_of_attention, "pooled"),
        ("vit_base_patch16_siglip_224", _tanh_gelu, "all"),
    ],
)
def test_control_a_slightly_wrong_network_exceeds_the_tolerance(monkeypatch, name, wrong, features):
    converted(name)
    wrong(monkeypatch)
    relative_errors = errors_of(name, scan=True)
    # The stages end before the pooling.
    exceeding = {key for key, value in relative_errors.items() if value > TOLERANCE}
    assert exceeding == (set(relative_errors) if features == "all" else {"pooled"})


@pytest.mark.parametrize(
    ("name", "changed", "same"),
    [
        ("vit_small_patch14_reg4_dinov2", {("blocks", "scale1", "scale"): np.ones_like}, ()),
        ("vit_small_patch14_reg4_dinov2", {("blocks", "scale2", "scale"): np.ones_like}, ()),
        ("vit_small_patch14_reg4_dinov2", {("register_tokens",): lambda x: 0 * x}, ()),
        ("vit_small_patch14_reg4_dinov2", {("pos_embed",): lambda x: np.roll(x, 1, axis=1)}, ()),
        ("convnextv2_atto", {("stage1_blocks", "mlp", "grn", "scale"): lambda x: 0 * x}, ()),
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


def test_command_converts_half_precision_teachers_without_and_with_a_new_classifier(tmp_path, capsys, monkeypatch):
    name = "vit_small_patch14_reg4_dinov2"
    small = models.variant(name)
    monkeypatch.setitem(registry.VARIANTS, name, small._replace(fields=small.fields | REDUCED))
    state = {key: value.astype(jnp.bfloat16) for key, value in state_of(name, 126).items()}
    safetensors.numpy.save_file(state, tmp_path / "x.safetensors")
    command = ["--model", name, "--checkpoint", str(tmp_path / "x.safetensors"), "--image-size", "56"]

    main([*command, "--out", str(tmp_path / "teacher")])
    assert f"{name}, 43,776 parameters, no classes: " in capsys.readouterr().out
    network, variables = models.load(tmp_path / "teacher")
    assert (network.num_classes, network.image_size) == (0, 56)
    kernel = variables["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel[3], state["blocks.3.mlp.fc1.weight"].astype(np.float32).T)
    # Positions are resized in float32.
    expected = resize_positions(state["pos_embed"].astype(np.float32), 16, prefix=0)
    np.testing.assert_array_equal(variables["params"]["pos_embed"], expected)

    main([*command, "--out", str(tmp_path / "ten"), "--head", "new", "--num-classes", "10"])
    network, variables = models.load(tmp_path / "ten")
    assert network.num_classes == 10
    assert 0.01 < np.std(variables["params"]["head"]["kernel"]) < 0.03

    export([str(tmp_path / "teacher"), "--format=timm", f"--out={tmp_path / 'y.safetensors'}"])
    printed = capsys.readouterr().out
    assert f'timm.create_model("{name}", num_classes=0, img_size=56, checkpoint_path=' in printed
    back = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert back.keys() == state.keys()
    np.testing.assert_array_equal(back["reg_token"], state["reg_token"].astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_exported_networks_give_the_same_vectors_in_timm(name, tmp_path):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from timm_networks import timm, torch

    size, changed = CASES[name]
    network = models.create(name, 0, size, **changed)
    variables = converted(name)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, convert.to_timm(name, variables, image_size=size, **changed), {})
    theirs = eval(create_model_call(name, network, path), {"timm": timm}).eval()
    images = random_images(size)
    normalized = torch.tensor(((images - network.mean) / network.std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(normalized).numpy()
    pooled = jax.jit(network.apply)(variables, images).features["pooled"]
    assert np.linalg.norm(pooled - expected) < TOLERANCE * np.linalg.norm(expected)

"""The printed `timm.create_model` call, as text and executed if timm is installed."""

import importlib.util

import jax
import numpy as np
import pytest

from lfcc_jax import convert, models
from lfcc_jax.convert.create_model import create_model_call
from lfcc_jax.convert.files import write_safetensors

# Name, image size, overrides; timm's network and its arguments, or None if timm cannot build it.
CASES = [
    ("resnet18", 224, {}, '"resnet18", num_classes=5'),
    ("resnet18", 32, {"image_channels": 1, "mean": (0.5,), "std": (0.5,)}, '"resnet18", num_classes=5, in_chans=1'),
    (
        "resnet18",
        32,
        {"blocks": (1, 1, 2, 1), "widths": (8, 8, 16, 24), "stem_width": 64},
        '"resnet18", num_classes=5, channels=(8, 8, 16, 24), layers=(1, 1, 2, 1)',
    ),
    (
        "resnet50",
        32,
        {"blocks": (1, 1, 1, 1), "widths": (32, 32, 64, 96)},
        '"resnet50", num_classes=5, channels=(8, 8, 16, 24), layers=(1, 1, 1, 1)',
    ),
    (
        "resnet18",
        32,
        {"block": "bottleneck", "widths": (64, 64, 64, 64), "blocks": (1, 1, 1, 1)},
        '"resnet50", num_classes=5, channels=(16, 16, 16, 16), layers=(1, 1, 1, 1)',
    ),
    ("resnet18", 32, {"widths": (8, 8, 8, 8)}, None),  # the stem also has 8 channels, unlike timm's
    ("resnet18", 32, {"strides": (1, 2, 2, 1)}, None),
    ("resnet18_32", 32, {}, None),
    ("mobilenetv2_100", 32, {"multiplier": 1.4, "dropout": 0.2}, '"mobilenetv2_140", num_classes=5'),
    ("mobilenetv2_100", 32, {"multiplier": 0.6}, None),
    ("mobilenetv2_050_32", 32, {}, None),
    ("efficientnet_b0", 64, {}, '"efficientnet_b0", num_classes=5, checkpoint_path'),
    ("mobilenetv3_large_100", 64, {"multiplier": 0.5}, None),
    (
        "convnext_tiny",
        32,
        {"widths": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},
        '"convnext_tiny", num_classes=5, dims=(8, 16, 24, 32), depths=(1, 1, 2, 1)',
    ),
    ("convnext_pico_32", 32, {}, None),  # its patches have 2 pixels
    ("convnext_tiny", 32, {"mlp_ratio": 2.0}, None),
    (
        "convnext_tiny",
        32,
        {"widths": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "response_norm": True, "layer_scale": None},
        '"convnextv2_atto", num_classes=5, dims=(8, 16, 24, 32), depths=(1, 1, 2, 1)',
    ),
    ("convnext_tiny", 32, {"response_norm": True}, None),
    ("convnextv2_pico", 32, {}, '"convnextv2_pico", num_classes=5, checkpoint_path'),
    (
        "vit_pico",
        8,
        {"image_channels": 1, "drop_path": 0.1},
        '"vit_tiny_patch16_224", num_classes=5, in_chans=1, img_size=8, patch_size=2, embed_dim=48, depth=4',
    ),
    (
        "deit_tiny",
        32,
        {"heads": 6, "depth": 4, "taps": (1, 2, 3, 4)},
        '"deit_tiny_patch16_224", num_classes=5, img_size=32, ',
    ),
    ("swin_femto_32", 32, {}, '"swin_tiny_patch4_window7_224", num_classes=5, img_size=32, patch_size='),
    (
        "swin_tiny",
        64,
        {"depths": (2, 2, 2, 2), "window": 4},
        '"swin_tiny_patch4_window7_224", num_classes=5, img_size=64',
    ),
    ("mixer_s16_224", 32, {}, '"mixer_s16_224", num_classes=5, img_size=32'),
    ("mixer_pico", 8, {}, None),
    ("resmlp_12", 32, {}, '"resmlp_12_224", num_classes=5, img_size=32'),
    ("resmlp_12", 32, {"depth": 2}, None),
    (
        "vit_small_patch14_dinov2",
        56,
        {"width": 24, "depth": 4, "heads": 3, "taps": (1, 2, 3, 4)},
        '"vit_small_patch14_dinov2", num_classes=5, img_size=56, embed_dim=24, depth=4, num_heads=3',
    ),
    (
        "vit_large_patch14_reg4_dinov2",
        56,
        {"width": 24, "depth": 4, "heads": 3, "taps": (1, 2, 3, 4)},
        '"vit_large_patch14_reg4_dinov2", num_classes=5, img_size=56, embed_dim=24, depth=4, num_heads=3',
    ),
    (
        "vit_small_patch16_dinov3",
        64,
        {"width": 24, "depth": 4, "heads": 3, "taps": (1, 2, 3, 4)},
        '"vit_small_patch16_dinov3", num_classes=5, img_size=64, embed_dim=24, depth=4, num_heads=3',
    ),
    ("vit_small_patch16_dinov3", 64, {"pooling": "token"}, None),
    ("vit_small_patch16_dinov3", 64, {"registers": 2}, None),
    (
        "vit_pico",
        8,
        {"pooling": "attention", "layer_scale": 0.1},
        '"vit_base_patch16_siglip_224", num_classes=5, img_size=8, patch_size=2, embed_dim=48, depth=4, num_heads=3, '
        "init_values=0.1",
    ),
]
IDS = [f"{name} {overrides}" for name, _, overrides, _ in CASES]


@pytest.mark.parametrize(("name", "size", "overrides", "expected"), CASES, ids=IDS)
def test_create_model_call_lists_differences_from_the_timm_network(name, size, overrides, expected):
    call = create_model_call(name, models.create(name, 5, size, **overrides), "x.safetensors")
    if expected is None:
        assert call is None
    else:
        assert call.startswith(f"timm.create_model({expected}")
        assert call.endswith(', checkpoint_path="x.safetensors")')


@pytest.mark.parametrize(
    ("name", "size", "overrides"),
    [case[:3] for case in CASES if case[3]],
    ids=[i for i, c in zip(IDS, CASES, strict=True) if c[3]],
)
def test_create_model_call_gives_the_same_logits_in_timm(name, size, overrides, tmp_path):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    import torch
    from timm_networks import timm

    network = models.create(name, 5, size, **overrides)
    images = jax.random.uniform(jax.random.key(0), (2, size, size, network.image_channels))
    variables = jax.jit(network.init)(jax.random.key(0), images)
    kernel = variables["params"]["head"]["kernel"]
    variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, convert.to_timm(name, variables, image_size=size, **overrides), {})
    theirs = eval(create_model_call(name, network, path), {"timm": timm}).eval()
    normalized = ((np.asarray(images) - network.mean) / network.std).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(normalized).permute(0, 3, 1, 2)).numpy()
    logits = jax.jit(network.apply)(variables, images).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())

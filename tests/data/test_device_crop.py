"""Device-side resizing of test images against Pillow."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lfcc_jax.data import host_crops
from lfcc_jax.data.device_crop import central_crop

GOLDEN = dict(np.load(Path(__file__).parents[1] / "goldens" / "augmentation.npz"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "crop"), [(16, 1.0), (16, 0.875), (5, 0.9), (40, 0.95), (224, 0.9)])
@pytest.mark.parametrize("side", [1, 8, 28, 33])
def test_central_crop_equals_pillow(side, size, crop, interpolation):
    rng = np.random.default_rng(0)
    checkers = np.indices((side, side)).sum(0)[:, :, None] % 2 * 255 * np.ones(3)
    images = np.stack([rng.integers(0, 256, (side, side, 3)), checkers]).astype(np.uint8)
    ours = 255 * central_crop(jnp.asarray(images), size, crop, interpolation)
    pillows = [host_crops.central_crop(Image.fromarray(image), size, crop, interpolation) for image in images]
    np.testing.assert_array_equal(np.rint(ours), pillows)


def test_central_crop_equals_timm():
    images = jnp.asarray(GOLDEN["picture"][None, :40, :40])
    for key in (key for key in GOLDEN if key.startswith("central/")):
        _, size, crop, interpolation = key.split("/")
        ours = np.rint(255 * central_crop(images, int(size), float(crop), interpolation)[0])
        np.testing.assert_array_equal(ours, GOLDEN[key])
        other = "bilinear" if interpolation == "bicubic" else "bicubic"
        different = 255 * np.asarray(central_crop(images, int(size), float(crop), other)[0])
        assert np.abs(different - GOLDEN[key]).max() > 2


def test_control_rounding_once_after_both_passes_differs_from_pillow():
    image = np.random.default_rng(0).integers(0, 2, (8, 8, 3), np.uint8) * 255
    once = jnp.clip(jnp.round(jax.image.resize(image.astype(jnp.float32), (32, 32, 3), "cubic")), 0, 255)
    assert np.abs(np.asarray(once) - host_crops.central_crop(Image.fromarray(image), 32)).max() > 2

"""The `data` block of a config."""

import jax
import numpy as np
import pytest

from lfcc_jax import data
from lfcc_jax.errors import UserError


def test_image_size_enables_crops_on_the_device():
    plain = data.open_inputs("noise_10x16")
    assert (plain.image_size, plain.resized, plain.augmentation.size) == (16, False, 0)
    for size in (16, 24):
        cropped = data.open_inputs("noise_10x16", image_size=size, augmentation={"scale": (0.2, 0.3)})
        assert (cropped.image_size, cropped.resized, cropped.augmentation.size) == (size, True, size)
        assert cropped.augmentation.scale == (0.2, 0.3)


def test_crops_to_the_original_size_are_applied():
    inputs = data.open_inputs("noise_10x16", image_size=16, augmentation={"scale": (0.2, 0.3)})
    column = np.arange(16, dtype=np.uint8) * 17
    ramps = np.broadcast_to(column[:, None], (8, 16, 16, 3))  # increasing from top to bottom
    cropped = jax.jit(inputs.augmentation.each)(jax.random.key(0), np.arange(8), ramps)
    heights = np.ptp(cropped, axis=(1, 2, 3))
    # 20 % to 30 % of the area at an aspect ratio of 3/4 to 4/3 is 38 % to 64 % of the height, plus the edges.
    assert heights.min() > 0.3
    assert heights.max() < 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": -1}, "config.data.image_size must be an integer between 0 and 8192, got -1"),
        ({"workers": 1.5}, "config.data.workers must be an integer between 0 and 256, got 1.5"),
        ({"augmentation": {"flipp": True}}, "config.data.augmentation: unknown key 'flipp'; did you mean 'flip'"),
        ({"augmentation": {"size": 8}}, "config.data.augmentation.size is set by the run and cannot be configured"),
        ({"workers": 100_000}, "config.data.workers must be an integer between 0 and 256, got 100000"),
        ({"augmentation": {"padding": 16}}, "padding must be less than the size of the images, 16, got 16"),
        ({"augmentation": {"scale": (0.5, 1.0)}}, "scale requires config.data.image_size"),
    ],
)
def test_open_inputs_rejects_invalid_arguments(settings, message):
    with pytest.raises(UserError, match=message):
        data.open_inputs("noise_10x16", **settings)


def test_variable_size_images_require_image_size_and_cannot_be_resident(monkeypatch):
    photographs = data.Source([{"image": b"", "label": 0}], 10, 0, 3)
    monkeypatch.setattr("lfcc_jax.data.inputs.open_sources", lambda *_, **__: [photographs, photographs])
    with pytest.raises(UserError, match="config.data.image_size is required"):
        data.open_inputs("photographs")
    with pytest.raises(
        UserError, match="config.data.resident must be False, since the images of 'photographs' vary in size"
    ):
        data.open_inputs("photographs", image_size=16, resident=True)

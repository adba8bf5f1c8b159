"""The `data` block of a config."""

import pytest

from lfcc_jax import data
from lfcc_jax.errors import UserError


def test_images_of_one_size_are_resized_on_the_device_only_if_another_is_asked_for():
    plain = data.open_splits("noise_10x16")
    assert (plain.image_size, plain.resized, plain.augmentation.size) == (16, False, 0)
    same = data.open_splits("noise_10x16", image_size=16)
    assert (same.image_size, same.resized, same.augmentation.size) == (16, False, 0)
    larger = data.open_splits("noise_10x16", image_size=24, augmentation={"scale": (0.5, 1.0)})
    assert (larger.image_size, larger.resized, larger.augmentation.size) == (24, True, 24)
    assert larger.scale == larger.augmentation.scale == (0.5, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": -1}, "config.data.image_size must be an integer between 0 and 8192, got -1"),
        ({"workers": 1.5}, "config.data.workers must be an integer between 0 and 256, got 1.5"),
        ({"augmentation": {"flipp": True}}, "config.data.augmentation: unknown key 'flipp'; did you mean 'flip'"),
        ({"augmentation": {"padding": 17}}, "padding must be at most the size of the images, 16 pixels, got 17"),
        ({"augmentation": {"size": 8}}, "config.data.augmentation.size is set by the run and cannot be configured"),
    ],
)
def test_open_splits_rejects_invalid_arguments(settings, message):
    with pytest.raises(UserError, match=message):
        data.open_splits("noise_10x16", **settings)


def test_photographs_need_a_size_and_are_not_kept_in_device_memory(monkeypatch):
    photographs = data.Source([{"image": b"", "label": 0}], 10, 0, 3)
    monkeypatch.setattr("lfcc_jax.data.splits.open_source", lambda *_: photographs)
    with pytest.raises(UserError, match="config.data.image_size: missing"):
        data.open_splits("photographs")
    with pytest.raises(UserError, match="config.data.resident: the images of 'photographs' vary in size"):
        data.open_splits("photographs", image_size=16, resident=True)

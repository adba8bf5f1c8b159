"""Host-side decoding and cropping against Pillow's pixels and torchvision's distribution of crops."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from data_sets import encode
from PIL import Image

from lfcc_jax import data
from lfcc_jax.data import host_crops

GOLDEN = dict(np.load(Path(__file__).parents[1] / "goldens" / "augmentation.npz"))
QUANTILES = np.linspace(0.05, 0.95, 19)


class RecordingImage:
    """An image of 32 x 32 pixels that records the boxes cropped from it."""

    size = (32, 32)

    def __init__(self):
        self.boxes = []

    def crop(self, box):
        left, top, right, bottom = box
        self.boxes.append((top, left, bottom - top, right - left))
        return Image.new("RGB", (4, 4))


def test_random_crop_has_the_distribution_of_torchvision():
    image, rng = RecordingImage(), np.random.default_rng(0)
    for _ in range(20_000):
        assert host_crops.random_crop(image, 8, rng).shape == (8, 8, 3)
    difference = np.abs(np.quantile(image.boxes, QUANTILES, axis=0) - GOLDEN["crops"])
    assert difference.max() <= 1
    assert difference.mean() < 0.25


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (50, 50)])
def test_random_crop_falls_back_to_the_center(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    # A crop of the whole area of an elongated image has no aspect ratio between 3/4 and 4/3.
    crop = host_crops.random_crop(image, 16, np.random.default_rng(1), scale=(1.0, 1.0))
    assert crop.shape == (16, 16, 3)
    if shape[0] != shape[1]:
        side, long = 30, 40
        box = (25, 0, 25 + long, side) if shape[1] > shape[0] else (0, 25, side, 25 + long)
        either = [np.asarray(image.crop(box).resize((16, 16), f)) for f in host_crops._FILTERS.values()]
        assert any(np.array_equal(crop, expected) for expected in either)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("central/")])
def test_central_crop_equals_pillow(key):
    _, size, crop, interpolation = key.split("/")
    image = Image.fromarray(GOLDEN["picture"][:40, :40])
    ours = host_crops.central_crop(image, int(size), float(crop), interpolation)
    np.testing.assert_array_equal(ours, GOLDEN[key])


@pytest.fixture
def variable_size():
    """A source of JPEG bytes of several sizes, each of one color."""

    def encoded(i):
        file = io.BytesIO()
        Image.new("RGB", (40 + i, 60 - i), (10 * i, 200 - 10 * i, 50)).save(file, "JPEG")
        return file.getvalue()

    return data.Source([{"image": encoded(i), "label": i} for i in range(12)], 12, 0, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_variable_size_images_have_one_size(variable_size, workers):
    batches = data.train_batches(variable_size, 4, seed=0, image_size=24, workers=workers)
    for _ in range(4):
        batch = next(batches)
        assert batch["image"].shape == (4, 24, 24, 3)
        expected = [(10 * i, 200 - 10 * i, 50) for i in batch["label"]]
        np.testing.assert_allclose(batch["image"].mean(axis=(1, 2)), expected, atol=3)  # JPEG is lossy
    tests = list(data.eval_batches(variable_size, 8, image_size=24, crop=0.9))
    assert [batch["image"].shape for batch in tests] == [(8, 24, 24, 3)] * 2
    assert np.concatenate([b["label"][b["mask"]] for b in tests]).tolist() == list(range(12))


def test_batches_do_not_depend_on_workers(variable_size):
    several = [data.train_batches(variable_size, 4, seed=0, image_size=24, workers=workers) for workers in (0, 2)]
    for _ in range(3):
        ours, theirs = (next(batches) for batches in several)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_train_batches_resume_with_a_different_number_of_workers(variable_size, before, after):
    first, second = (data.train_batches(variable_size, 4, seed=0, image_size=24, workers=n) for n in (before, after))
    for _ in range(5):
        next(first)
    second.set_state(json.loads(json.dumps(first.get_state())))
    for _ in range(2):
        ours, theirs = next(first), next(second)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    first.close()
    second.close()


def test_decode_converts_all_color_modes():
    for mode in ("L", "CMYK", "RGBA", "P", "1", "LA"):
        encoded = encode(Image.new(mode, (8, 8)), "JPEG" if mode == "CMYK" else "PNG")
        assert host_crops.decode(encoded).mode == "RGB"
        assert host_crops.decode(encoded, channels=1).mode == "L"


@pytest.mark.parametrize(("file_format", "kind"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_decode_keeps_the_high_byte_of_16_bit_grayscale(file_format, kind):
    levels = np.arange(2**16, dtype=kind).reshape(256, 256)
    image = Image.frombytes("I;16B" if kind == ">u2" else "I;16", (256, 256), levels.tobytes())
    encoded = encode(image, file_format)
    gray = np.asarray(host_crops.decode(encoded, channels=1))
    np.testing.assert_array_equal(gray, levels // 256)
    assert gray.mean() == 127.5
    color = np.asarray(host_crops.decode(encoded))
    np.testing.assert_array_equal(color, np.repeat(gray[:, :, None], 3, 2))
    # Negative control: Pillow alone clips.
    assert np.asarray(Image.open(io.BytesIO(encoded)).convert("L")).mean() > 250


def test_decode_drops_transparency_without_a_warning():
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    palette = Image.fromarray(colors).quantize(64)
    alpha = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    transparent = Image.fromarray(colors)
    transparent.putalpha(alpha)
    np.testing.assert_array_equal(host_crops.decode(encode(transparent)), colors)
    for mark in (bytes(64), 3):
        np.testing.assert_array_equal(
            host_crops.decode(encode(palette, transparency=mark)), np.asarray(palette.convert("RGB"))
        )


def test_decode_ignores_exif_orientation():
    colors = np.zeros((8, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.asarray(host_crops.decode(encode(colors, "JPEG", exif=exif))).shape == (8, 16, 3)

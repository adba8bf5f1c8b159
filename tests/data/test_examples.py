"""Every way of reading examples checks them."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_sets import encode
from PIL import Image

from lfcc_jax import data
from lfcc_jax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8, 3), np.uint8)
JPEG = encode(RNG.integers(0, 256, (40, 30, 3), np.uint8), "JPEG")


def read_training(source):
    for _, _ in zip(range(20), data.train_batches(source, 4, seed=0, image_size=16), strict=False):
        pass


def read_evaluation(source):
    list(data.eval_batches(source, 4, image_size=16))


def read_in_worker(source):
    list(data.eval_batches(source, 4, image_size=16, workers=1))


def source_of(examples, image_size=0):
    return data.Source(examples, 10, image_size, 3, "toy", "train[:10%]")


def source_with(**changed):
    """Eight valid images, with changes to the sixth."""
    good = {"image": JPEG, "label": 3}
    return source_of([good | (changed if i == 5 else {}) for i in range(8)])


WHERE = r"^data set 'toy', split 'train\[:10%\]', example 5: "


@pytest.mark.parametrize("read", [read_training, read_evaluation])
@pytest.mark.parametrize("label", [-1, 10])
def test_streaming_rejects_labels_out_of_range(read, label):
    with pytest.raises(UserError, match=WHERE + rf"the label must be in \[0, 10\), got {label}\b"):
        read(source_with(label=label))
    read(source_with(label=9))


@pytest.mark.parametrize("label", [-1, 10])
@pytest.mark.parametrize("resident", [False, True])
def test_load_rejects_labels_out_of_range(make_data_set, label, resident):
    examples = [{"image": PIXELS, "label": label if i == 5 else 1} for i in range(8)]
    path = make_data_set(examples, tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8))
    inputs = data.open_inputs(str(path), "train[:5]", "test[2:]", resident=resident)
    with pytest.raises(UserError, match=rf"^data set 'toy', split 'test\[2:\]', example 3: .* got {label}\b"):
        inputs.load()
    inputs = data.open_inputs(str(path), "train", "test", resident=resident)
    with pytest.raises(UserError, match=rf"^data set 'toy', split 'train', example 5: .* got {label}\b"):
        inputs.load()
    good = data.open_inputs(str(path), "train[:5]", "test[6:]", resident=resident).load()
    assert data.read_all(good.train)["label"].tolist() == [1] * 5


@pytest.mark.parametrize(
    ("label", "shown"), [(1.5, "1.5"), (float("nan"), "nan"), ([1, 2], r"\[1, 2\]"), ("cat", "'cat'"), (None, "None")]
)
def test_read_rejects_labels_that_are_not_one_integer(label, shown):
    with pytest.raises(UserError, match=WHERE + f"the label must be one integer, got {shown}$"):
        data.read(source_with(label=label), 5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS / np.float32(255), "the image must be uint8, got float32"),
        (PIXELS.astype(np.int32), "the image must be uint8, got int32"),
        (np.full((8, 8, 3), np.nan), "the image must be uint8, got float64"),
        (PIXELS[:, :, :1], r"the image must have shape \(8, 8, 3\), got \(8, 8, 1\)"),
        (PIXELS[:7], r"the image must have shape \(8, 8, 3\), got \(7, 8, 3\)"),
        (encode(PIXELS[:7]), r"the image must have shape \(8, 8, 3\), got \(7, 8, 3\)"),
        (PIXELS[:, :, 0], r"the image must have shape \(8, 8, 3\), got \(8, 8\)"),
    ],
)
def test_read_rejects_images_of_the_wrong_dtype_or_shape(image, message):
    source = source_of([{"image": PIXELS, "label": 1}] * 5 + [{"image": image, "label": 1}], 8)
    for read in (lambda source: data.read(source, 5), data.read_all, data.in_memory):
        with pytest.raises(UserError, match=WHERE + message):
            read(source)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS / np.float32(255), "the image must be uint8, got float32"),
        (PIXELS[:0], r"the image must have shape \(height, width, 3\), got \(0, 8, 3\)"),
        (PIXELS[:, :, :2], r"the image must have shape \(height, width, 3\), got \(8, 8, 2\)"),
    ],
)
def test_read_rejects_variable_size_images_of_the_wrong_dtype_or_channels(image, message):
    with pytest.raises(UserError, match=WHERE + message):
        data.read(source_with(image=image), 5)


def png_header_of(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(100))
    data_ = b"IDAT" + content
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", len(content)) + data_ + struct.pack(">I", zlib.crc32(data_))
    )  # fmt: skip


UNDECODABLE = {
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "cannot be read: OSError: image file is truncated"),
    "truncated PNG": (encode(PIXELS)[:100], "cannot be read: "),
    "empty": (b"", "the image must be one of JPEG, PNG, GIF, BMP, TIFF, WEBP, got 0 bytes: b''"),
    "text": (b"not an image", "the image must be one of JPEG, .*, got 12 bytes: b'not an image'"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the image must be one of JPEG, "),
    "claims 10000 x 10000": (png_header_of(10_000, 10_000), "the image must have at most 89,478,485 pixels"),
    "claims 30000 x 30000": (png_header_of(30_000, 30_000), "cannot be read: DecompressionBombError"),
    "32-bit TIFF": (encode(np.zeros((4, 4), np.float32), "TIFF"), "the image must have 8 or 16 bits per channel"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", UNDECODABLE)
def test_read_names_an_undecodable_image_in_one_line(kind):
    image, message = UNDECODABLE[kind]
    with pytest.raises(UserError, match=WHERE + message) as caught:
        data.read(source_with(image=image), 5)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("read", [read_training, read_evaluation, read_in_worker])
def test_pipelines_name_an_undecodable_image(read):
    with pytest.raises(UserError, match=WHERE + "cannot be read: OSError: "):
        read(source_with(image=JPEG[:500]))


def test_eval_batches_resize_an_image_of_one_pixel():
    batch = next(data.eval_batches(source_of([{"image": encode(PIXELS[:1, :1]), "label": 0}]), 1, image_size=16))
    np.testing.assert_array_equal(batch["image"], np.broadcast_to(PIXELS[0, 0], (1, 16, 16, 3)))


def test_central_crop_of_a_very_long_image_needs_little_memory():
    ramp = np.linspace(0, 255, 60_000).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (2, 60_000)))
    batch = next(data.eval_batches(source_of([{"image": encode(image), "label": 0}]), 1, image_size=224))
    # The whole resized image would have 224 x 6,720,000 pixels. The crop covers the two central columns.
    assert np.unique(batch["image"]).tolist() in ([127], [127, 128], [128])

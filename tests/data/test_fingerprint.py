import io

import numpy as np
import pytest
from PIL import Image

from lfcc_jax.data.fingerprint import fingerprint
from lfcc_jax.data.source import Source
from lfcc_jax.errors import UserError


def source(image=3, label=1, count=20):
    examples = [{"image": np.full((4, 4, 1), image, np.uint8), "label": label} for _ in range(count)]
    return Source(examples, num_classes=5, image_size=4, image_channels=1, name="a")


def test_fingerprint_changes_with_images_labels_and_sizes():
    described = [fingerprint(source(**change)) for change in ({}, {"image": 4}, {"label": 2}, {"count": 21})]
    assert fingerprint(source()) == described[0]
    assert all(described[0] != other for other in described[1:])
    assert described[0]["examples"] == 20


def test_fingerprint_changes_with_encoded_images():
    digests = []
    for level in (3, 4):
        file = io.BytesIO()
        Image.fromarray(np.full((5, 7, 3), level, np.uint8)).save(file, "PNG")
        digests.append(fingerprint(Source([{"image": file.getvalue(), "label": 0}], 5, 0, 3))["digest"])
    assert digests[0] != digests[1]


def test_fingerprint_rejects_an_undecodable_image():
    with pytest.raises(UserError, match="example 0: the image must be one of JPEG"):
        fingerprint(Source([{"image": b"jpeg", "label": 0}], 5, 0, 3, "photos"))

import numpy as np

from lfcc_jax.data.fingerprint import fingerprint
from lfcc_jax.data.source import Source


def source(image=3, label=1, count=20):
    examples = [{"image": np.full((4, 4, 1), image, np.uint8), "label": label} for _ in range(count)]
    return Source(examples, num_classes=5, image_size=4, image_channels=1, name="a")


def test_fingerprint_changes_with_images_labels_and_sizes():
    described = [fingerprint(source(**change)) for change in ({}, {"image": 4}, {"label": 2}, {"count": 21})]
    assert fingerprint(source()) == described[0]
    assert all(described[0] != other for other in described[1:])
    assert described[0]["examples"] == 20


def test_fingerprint_reads_encoded_images():
    encoded = [{"image": b"jpeg", "label": 0}, {"image": b"JPEG", "label": 0}]
    a, b = (fingerprint(Source(examples, 5, 0, 3)) for examples in (encoded[:1], encoded[1:]))
    assert a["digest"] != b["digest"]

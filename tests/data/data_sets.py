"""Encodes images for test data sets."""

import io

import numpy as np
from PIL import Image


def encode(image, file_format="PNG", **options):
    """Returns the content of an image file."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    image.save(file, file_format, **options)
    return file.getvalue()

"""Image files in memory, to make data sets of."""

import io

import numpy as np
from PIL import Image


def encode(image, file_format="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    image.save(file, file_format, **options)
    return file.getvalue()

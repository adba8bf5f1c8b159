"""From the bytes of a photograph to a square of uint8: what the host does for data sets whose images vary in size."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(picture: Any, channels: int = 3) -> Image.Image:
    """Returns the picture that encoded bytes, or an array `[height, width, channels]` of uint8, hold.

    Encoded bytes become colour, or grey if there is to be one channel.
    """
    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture)).convert("L" if channels == 1 else "RGB")
    return Image.fromarray(np.asarray(picture).squeeze(-1) if picture.shape[-1] == 1 else np.asarray(picture))


def random_crop(
    picture: Image.Image, size: int, rng: np.random.Generator, scale: tuple[float, float] = (0.08, 1.0)
) -> np.ndarray:
    """Returns a random part of a picture, resized: torchvision's `RandomResizedCrop`, as timm uses it.

    The part's area is uniform in `scale`, its aspect ratio log-uniform in [3/4, 4/3], its place uniform; the
    interpolation is bilinear or bicubic at random. After ten parts that do not fit, the largest one in the middle.

    Args:
      picture: of any size.
      size: side of the result, in pixels.
      rng: of the random numbers.
      scale: least and largest share of the picture's area.

    Returns:
      uint8 `[size, size, channels]`.
    """
    width, height = picture.size
    lowest, highest = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(lowest, highest))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            break
    else:
        aspect = min(max(width / height, 3 / 4), 4 / 3)
        w, h = (width, round(width / aspect)) if width / height <= aspect else (round(height * aspect), height)
        left, top = (width - w) // 2, (height - h) // 2
    filter_ = _FILTERS["bicubic" if rng.random() < 0.5 else "bilinear"]
    return _array(picture.crop((left, top, left + w, top + h)).resize((size, size), filter_))


def central_crop(picture: Image.Image, size: int, crop: float = 1.0, interpolation: str = "bicubic") -> np.ndarray:
    """Returns the middle of a picture whose shorter side was resized to `size / crop` pixels, as timm evaluates.

    Args:
      picture: of any size.
      size: side of the result, in pixels.
      crop: share of the resized picture, along its shorter side, that is kept.
      interpolation: `bilinear` or `bicubic`.

    Returns:
      uint8 `[size, size, channels]`.
    """
    width, height = picture.size
    short = resized_side(size, crop)
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = picture.resize((width, height), _FILTERS[interpolation])
    return _array(resized.crop((left, top, left + size, top + size)))


def resized_side(size: int, crop: float) -> int:
    """Returns the side to which an image is resized so that its middle of `size` pixels is a share `crop` of it."""
    return math.floor(size / crop)


def _array(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]

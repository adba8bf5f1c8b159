"""Decodes, crops and resizes images on the host, for data sets whose images vary in size."""

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lfcc_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
# Pillow warns about larger images. The largest in ImageNet has 61 million pixels.
LARGEST = 89_478_485
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(encoded: bytes, channels: int = 3, upright: bool = False) -> Image.Image:
    """Returns the image in encoded bytes, in mode `RGB`, or `L` if `channels` is 1.

    Alpha is dropped, as in timm and torchvision. 16-bit grayscale keeps the high byte, as in libpng and TensorFlow.
    Only the first frame of an animation is read.

    Args:
      encoded: Content of a JPEG, PNG, GIF, BMP, TIFF or WebP file.
      channels: 1 or 3.
      upright: Whether to rotate the image as its EXIF orientation says. timm and torchvision ignore it.

    Raises:
      UserError: if the bytes are in another format or pixel type, or the image has more than 89 million pixels.
      Exception: whatever Pillow raises for damaged files.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UserError(
            f"the image must be one of {', '.join(FORMATS)}, got {len(encoded):,} bytes: {encoded[:16]!r}"
        ) from error
    if image.width * image.height > LARGEST:
        raise UserError(f"the image must have at most {LARGEST:,} pixels, got {image.width} x {image.height}")
    image.load()
    if upright:
        ImageOps.exif_transpose(image, in_place=True)
    # Avoids Pillow's warning that transparency is lost.
    image.info.pop("transparency", None)
    if image.mode in ("I;16", "I;16L", "I;16B"):
        # Pillow's own conversion clips at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"the image must have 8 or 16 bits per channel, got 32 (Pillow's mode {image.mode})")
    return image.convert("L" if channels == 1 else "RGB")


def random_crop(
    picture: Image.Image, size: int, rng: np.random.Generator, scale: tuple[float, float] = (0.08, 1.0)
) -> np.ndarray:
    """Returns a random crop of an image, resized: torchvision's `RandomResizedCrop`, as timm uses it.

    The area of the crop is uniform in `scale`, its aspect ratio log-uniform in [3/4, 4/3], its position uniform; the
    interpolation is bilinear or bicubic at random. If ten attempts do not fit, the largest central crop is used.

    Args:
      picture: Image of any size.
      size: Side of the result, in pixels.
      rng: Random number generator.
      scale: Smallest and largest fraction of the image's area in the crop.

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
    """Returns the central crop of an image whose shorter side is resized to `size / crop` pixels, as timm evaluates.

    Args:
      picture: Image of any size.
      size: Side of the result, in pixels.
      crop: Fraction of the resized image, along its shorter side, that is kept.
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
    if width * height > LARGEST:  # a very long image: crop without resizing it whole
        zoom = max(picture.size) / max(width, height)
        box = (left * zoom, top * zoom, (left + size) * zoom, (top + size) * zoom)
        return _array(picture.resize((size, size), _FILTERS[interpolation], box=box))
    resized = picture.resize((width, height), _FILTERS[interpolation])
    return _array(resized.crop((left, top, left + size, top + size)))


def resized_side(size: int, crop: float) -> int:
    """Returns the side to which an image is resized so that a crop of `size` pixels is a fraction `crop` of it."""
    return math.floor(size / crop)


def _array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]

"""Records augmentations of Pillow, torchvision and timm: `python tests/goldens/record_augmentation.py`."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, LEVEL_TO_ARG, rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm_networks import timm  # noqa: F401  (makes torchvision importable)
from torchvision.transforms import RandomResizedCrop

DRAWS = 20_000
QUANTILES = np.linspace(0.05, 0.95, 19)
FILL = (124, 116, 104)


def base_image():
    """Returns a smooth color image of 40 x 48 pixels with noise, with levels from 20 to 240."""
    y, x = np.mgrid[:40, :48]
    waves = [110 + 70 * np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)]
    noise = np.random.RandomState(0).normal(0, 12, (40, 48, 3))
    return np.clip(np.stack(waves, -1) + noise, 20, 240).astype(np.uint8)


def operations(image):
    """Returns the argument and the result of each operation."""
    settings = {"resample": Image.BILINEAR, "fillcolor": FILL}

    def affine(*numbers):
        return image.transform(image.size, Image.AFFINE, numbers, **settings)

    width, height = image.size
    return {
        "autocontrast": (0, ImageOps.autocontrast(image)),
        "equalize": (0, ImageOps.equalize(image)),
        "invert": (0, ImageOps.invert(image)),
        "rotate": (-27.0, image.rotate(-27.0, **settings)),
        "posterize": (3, ImageOps.posterize(image, 3)),
        "solarize": (100, ImageOps.solarize(image, 100)),
        "solarize_add": (60, image.point([min(255, i + 60) if i < 128 else i for i in range(256)] * 3)),
        "color": (1.6, ImageEnhance.Color(image).enhance(1.6)),
        "contrast": (0.3, ImageEnhance.Contrast(image).enhance(0.3)),
        "brightness": (1.7, ImageEnhance.Brightness(image).enhance(1.7)),
        "sharpness": (0.2, ImageEnhance.Sharpness(image).enhance(0.2)),
        "shear_x": (0.25, affine(1, 0.25, 0, 0, 1, 0)),
        "shear_y": (-0.25, affine(1, 0, 0, -0.25, 1, 0)),
        "translate_x": (0.3, affine(1, 0, 0.3 * width, 0, 1, 0)),
        "translate_y": (-0.3, affine(1, 0, 0, 0, 1, -0.3 * height)),
    }


def arguments(magnitude):
    """Returns the absolute argument at a magnitude, for each timm operation that has one."""
    result = {}
    for name in _RAND_INCREASING_TRANSFORMS:
        if LEVEL_TO_ARG[name]:
            random.seed(1)
            result[name] = max(LEVEL_TO_ARG[name](magnitude, {})[0] for _ in range(20))
    return result


def boxes():
    """Returns quantiles of top, left, height and width of crops and of erased boxes."""
    crop = RandomResizedCrop(32, scale=(0.08, 1.0))
    image = torch.zeros(3, 32, 32)
    crops = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(DRAWS)])
    erase = RandomErasing(1.0, mode="const", device="cpu")
    erased = []
    for _ in range(DRAWS // 4):
        mask = (erase(torch.ones(1, 32, 32))[0] == 0).numpy()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        erased.append((rows[0], columns[0], len(rows), len(columns)))
    erased = np.array(erased)
    return np.quantile(crops[:, [0, 1, 2, 3]], QUANTILES, axis=0), np.quantile(erased, QUANTILES, axis=0)


def mix_ratios(mixup, cutmix):
    """Returns quantiles of the weight of an image's own label."""
    mixer = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=2)
    images, labels = torch.zeros(2, 1, 32, 32), torch.tensor([0, 1])
    return np.quantile([mixer(images.clone(), labels)[1][0, 0].item() for _ in range(DRAWS // 4)], QUANTILES)


def policies():
    """Returns timm's number of layers, number of operations, and probability."""
    transform = rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    return {"layers": transform.num_layers, "operations": len(transform.ops), "p": transform.ops[0].prob}


def main():
    """Writes augmentation.npz."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    image = Image.fromarray(base_image())
    golden = {"picture": base_image(), "fill": np.array(FILL)}
    for name, (argument, result) in operations(image).items():
        golden[f"{name}/argument"], golden[f"{name}/result"] = np.float32(argument), np.asarray(result)
    for magnitude in (0.0, 4.5, 9.0, 10.0):
        for name, value in arguments(magnitude).items():
            golden[f"level/{magnitude:g}/{name}"] = np.float64(value)
    golden["crops"], golden["erased"] = boxes()
    golden["mixup"], golden["cutmix"] = mix_ratios(0.8, 0.0), mix_ratios(0.0, 1.0)
    golden |= {f"policy/{key}": np.float64(value) for key, value in policies().items()}
    for size, crop, name in ((64, 0.875, "bilinear"), (56, 0.9, "bicubic"), (24, 0.875, "bicubic")):
        side = int(size / crop)
        square = image.crop((0, 0, 40, 40)).resize((side, side), getattr(Image.Resampling, name.upper()))
        edge = round((side - size) / 2)
        golden[f"central/{size}/{crop}/{name}"] = np.asarray(square.crop((edge, edge, edge + size, edge + size)))
    np.savez_compressed(Path(__file__).with_name("augmentation.npz"), **golden)


if __name__ == "__main__":
    main()

"""Cases compared with timm: networks, image sizes, evaluation and training mode, changed fields."""

import numpy as np

NUM_CLASSES = 20
WITH_BATCH_NORM = ["mobilenetv2_100", "mobilenetv2_140", "resnet18", "resnet34", "resnet50", "resnet101"]
NAMES = [
    *WITH_BATCH_NORM,
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "mixer_s16_224",
    "mixer_b16_224",
    "resmlp_12_224",
    "resmlp_24_224",
    "swin_nano_patch4_window7_224",
    "swin_pico_patch4_window7_224",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
]
# Sizes with odd feature maps, and with windows that are padded, smaller than seven, or not shifted.
OTHER_SIZES = [
    ("resnet18", 90, False),
    ("mobilenetv2_100", 90, False),
    ("convnext_tiny", 100, False),
    ("deit_tiny_patch16_224", 160, False),
    ("resmlp_12_224", 96, False),
    ("swin_pico_patch4_window7_224", 160, False),
    ("swin_pico_patch4_window7_224", 256, False),
]
# Variants that differ from another one in depth and width only.
DEEPER = {n for n in NAMES if "_small" in n or "_base" in n or n in ("resnet34", "resnet101", "resmlp_24_224")}
DEEPER |= {"mobilenetv2_140", "mixer_b16_224", "swin_nano_patch4_window7_224"}
CASES = [(n, 224, False) for n in NAMES] + [(n, 224, True) for n in WITH_BATCH_NORM] + OTHER_SIZES

# Networks newer than the benchmark, as (name, size, changed fields): small ones for every run of the tests, real ones
# for the marker `exhaustive`. DINOv3's ConvNeXts are also among those above.
_REDUCED = {"width": 96, "depth": 5, "heads": 3, "taps": (1, 2, 3, 5)}
_REDUCED_CONVNEXT = {"widths": (24, 32, 48, 64), "depths": (1, 1, 2, 1)}
NEWER = [
    ("vit_small_patch14_dinov2", 56, _REDUCED),
    ("convnext_tiny", 64, _REDUCED_CONVNEXT),
    ("convnextv2_atto", 64, _REDUCED_CONVNEXT),
    ("vit_small_patch14_reg4_dinov2", 70, _REDUCED),
    ("vit_small_patch16_dinov3", 96, _REDUCED),
    ("vit_base_patch16_siglip_224", 64, _REDUCED),
    ("efficientnet_b0", 64, {}),
    ("mobilenetv3_large_100", 64, {}),
]
NEWER_WITH_BATCH_NORM = ["efficientnet_b0", "mobilenetv3_large_100"]
NEWER_FULL = [
    *((name, 224, {}) for name in NEWER_WITH_BATCH_NORM),
    ("convnextv2_atto", 224, {}),
    ("convnextv2_femto", 224, {}),
    ("convnextv2_pico", 224, {}),
    ("convnextv2_nano", 224, {}),
    ("vit_small_patch14_dinov2", 518, {}),
    ("vit_base_patch14_dinov2", 98, {}),
    ("vit_large_patch14_dinov2", 98, {}),
    ("vit_small_patch14_reg4_dinov2", 518, {}),
    ("vit_base_patch14_reg4_dinov2", 98, {}),
    ("vit_large_patch14_reg4_dinov2", 98, {}),
    ("vit_small_patch16_dinov3", 256, {}),
    ("vit_base_patch16_dinov3", 96, {}),
    ("vit_base_patch16_siglip_224", 224, {}),
]


def samples(x, count=300):
    """Returns a sample of an array's values; the indices depend only on its size."""
    x = np.asarray(x).reshape(-1)
    return x[np.random.RandomState(x.size % 2**32).randint(x.size, size=count)]

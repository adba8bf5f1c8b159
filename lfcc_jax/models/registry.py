"""The registry of named variants: every network of the zoo, by timm's name or a shorter one."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from lfcc_jax.arguments import check_value, checked_arguments, signature
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.models import convnext, mixer, mobilenet, resmlp, resnet, swin, vit
from lfcc_jax.models.network import Network

VARIANTS = {
    name: variant
    for family in (convnext, mixer, mobilenet, resmlp, resnet, swin, vit)
    for name, variant in family.VARIANTS.items()
}
# timm's names say the patch, window and image size; without them they are as clear here.
_SHORT = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "mixer_b16": "mixer_b16_224",
    "mixer_s16": "mixer_s16_224",
    "resmlp_12": "resmlp_12_224",
    "resmlp_24": "resmlp_24_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_nano": "swin_nano_patch4_window7_224",
    "swin_pico": "swin_pico_patch4_window7_224",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}


def list_models() -> list[str]:
    """Returns the full names that `create` takes, sorted."""
    return sorted(VARIANTS)


def create(name: str, num_classes: int, image_size: int | None = None, **overrides: object) -> Network:
    """Returns the network called `name`, not yet initialized.

    Args:
      name: one of `list_models()`, as timm calls it, or without patch, window and image size (`swin_tiny`).
      num_classes: width of the classifier.
      image_size: height and width of the images, in pixels; that of the name if None.
      **overrides: fields of the network's class that differ from the named variant, for example `dropout=0.1`.

    Returns:
      A Linen module with the calling convention of `Network`.

    Raises:
      UserError: if the name or a field is unknown (with the nearest one), a value is out of bounds, or no image size is
        given and the name has none.

    Examples:
      >>> model = create("vit_nano", num_classes=10, image_size=8, image_channels=1)
      >>> model.feature_info()["stage4"]
      FeatureInfo(height=4, width=4, channels=96)
      >>> create("swin_tiny", num_classes=1000).feature_info()["stage1"]
      FeatureInfo(height=56, width=56, channels=96)
    """
    sizes = {"num_classes": num_classes} | ({} if image_size is None else {"image_size": image_size})
    check_value(name, str, "name")
    return configured(name, name, overrides | sizes)


def configured(
    where: str,
    name: str,
    fields: Mapping[str, Any],
    set_by_run: Mapping[str, Any] = MappingProxyType({}),
    read_by_caller: Mapping[str, Any] = MappingProxyType({}),
) -> Network:
    """Returns the network that a config block describes; see `create`.

    Args:
      where: What to call the block in error messages, for example "config.student".
      name: As for `create`.
      fields: Fields of the network's class that differ from the named variant.
      set_by_run: As for `checked_arguments`.
      read_by_caller: As for `checked_arguments`.

    Raises:
      UserError: as `create`.
    """
    check_value(name, str, f"{where}.name")
    full = full_name(name)
    if full not in VARIANTS:
        raise unknown("network", name, [*VARIANTS, *_SHORT])
    family, variant = VARIANTS[full]
    variant = {key: value for key, value in variant.items() if key not in set_by_run}
    if "image_size" not in {**variant, **fields, **set_by_run}:
        raise UserError(f"network '{name}' is made for images of any size: give image_size, in pixels")
    check_value(set_by_run.get("image_size", 1), signature(family)["image_size"].annotation, "the size of the images")
    arguments = checked_arguments(family, {**variant, **fields}, where, set_by_run, read_by_caller)
    return family(**arguments | {"dtype": jnp.dtype(arguments.get("dtype", jnp.float32))})


def full_name(name: str) -> str:
    """Returns the name with patch, window and image size that a short one stands for; every other as it is."""
    return _SHORT.get(name, name)

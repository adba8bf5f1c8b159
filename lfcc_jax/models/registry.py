"""The registry of networks, by timm's names or shorter ones."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp

from lfcc_jax.arguments import check_value, checked_arguments, signature
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.models import convnext, efficientnet, mixer, mobilenet, mobilenetv3, resmlp, resnet, swin, vit
from lfcc_jax.models.adapters import Adapter, from_factory, full_factory_name
from lfcc_jax.models.network import Network, Variant

VARIANTS: dict[str, Variant] = {
    name: named
    for module in (convnext, efficientnet, mixer, mobilenet, mobilenetv3, resmlp, resnet, swin, vit)
    for name, named in module.VARIANTS.items()
}
# Unambiguous here without timm's suffixes for patch, window and image size.
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


def create(name: str, num_classes: int, image_size: int | None = None, **overrides: object) -> Network | Adapter:
    """Returns the network called `name`, not yet initialized.

    Args:
      name: One of `list_models()`, or a short name without patch, window and image size, such as `swin_tiny`; or
        `FILE.py:FUNCTION`, a function that makes a network, as in `adapters.from_factory`.
      num_classes: Number of classes.
      image_size: Height and width of the images, in pixels; the named network's if None.
      **overrides: Fields of the network's class that differ from the named network, for example `dropout=0.1`.

    Returns:
      A Linen module with the calling convention of `Network`.

    Raises:
      UserError: if the name or a field is unknown (with the nearest one), a value is out of bounds, or `image_size` is
        None and the named network has none.

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
) -> Network | Adapter:
    """Returns the network that a config block describes; see `create`, or `adapters.from_factory` for a user's own.

    Args:
      where: What to call the block in error messages, for example "config.student".
      name: As for `create`.
      fields: Fields of the network's class that differ from the named network.
      set_by_run: As for `checked_arguments`.
      read_by_caller: As for `checked_arguments`.

    Raises:
      UserError: as `create`.
    """
    check_value(name, str, f"{where}.name")
    if ":" in name:
        return from_factory(where, name, fields, set_by_run, read_by_caller)
    kind, preset, *_ = variant(name)
    fields = {key: value for key, value in preset.items() if key not in set_by_run} | dict(fields)
    if "image_size" not in {**fields, **set_by_run}:
        raise UserError(f"network '{name}' has no default image size: set image_size, in pixels")
    check_value(set_by_run.get("image_size", 1), signature(kind)["image_size"].annotation, "the size of the images")
    arguments = checked_arguments(kind, fields, where, set_by_run, read_by_caller)
    return kind(**arguments | {"dtype": jnp.dtype(arguments.get("dtype", jnp.float32))})


def variant(name: str) -> Variant:
    """Returns the class and the fields of the network called `name`; see `create`.

    Raises:
      UserError: if the name is unknown, with the nearest one.
    """
    if (full := full_name(name)) not in VARIANTS:
        error = unknown("network", name, [*VARIANTS, *_SHORT])
        raise UserError(f"{error} For a network of your own: FILE.py:FUNCTION, see docs/your_network.md")
    return VARIANTS[full]


def family(name: str) -> Literal["cnn", "transformer", "mlp"]:
    """Returns the family of the network called `name`; see `create`.

    Raises:
      UserError: if the name is unknown, with the nearest one.

    Examples:
      >>> family("resnet18"), family("swin_tiny"), family("mixer_b16")
      ('cnn', 'transformer', 'mlp')
    """
    return variant(name).network.family


def full_name(name: str) -> str:
    """Returns the full name for a short one, the absolute path for a file's function, and any other name unchanged."""
    return full_factory_name(name) if ":" in name else _SHORT.get(name, name)

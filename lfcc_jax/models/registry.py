"""The registry of named variants: every network of the zoo, by timm's name or a shorter one."""

from lfcc_jax.errors import UserError, checked_arguments, unknown
from lfcc_jax.models import convnext, mixer, mobilenet, resmlp, resnet, swin, vit
from lfcc_jax.models.network import Network

_VARIANTS = {
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
    return sorted(_VARIANTS)


def create(name: str, num_classes: int, image_size: int | None = None, **overrides: object) -> Network:
    """Returns the network called `name`, not yet initialised.

    Args:
      name: one of `list_models()`, as timm calls it, or without patch, window and image size (`swin_tiny`).
      num_classes: width of the classifier.
      image_size: height and width of the images, in pixels; that of the name if None.
      **overrides: fields of the network's class that differ from the named variant, for example `dropout=0.1`.

    Returns:
      A Linen module with the calling convention of `Network`.

    Raises:
      UserError: for an unknown name or field, with the nearest one; if no image size is given and the
        name has none.

    Examples:
      >>> model = create("vit_nano", num_classes=10, image_size=8, image_channels=1)
      >>> model.feature_info()["stage4"]
      FeatureInfo(height=4, width=4, channels=96)
      >>> create("swin_tiny", num_classes=1000).feature_info()["stage1"]
      FeatureInfo(height=56, width=56, channels=96)
    """
    full = full_name(name)
    if full not in _VARIANTS:
        raise unknown("network", name, [*_VARIANTS, *_SHORT])
    family, fields = _VARIANTS[full]
    given = fields | {"num_classes": num_classes} | overrides
    if image_size is not None:
        given["image_size"] = image_size
    if "image_size" not in given:
        raise UserError(f"network '{name}' is made for images of any size: give image_size, in pixels")
    network = family(**checked_arguments(family, given, f"network '{name}'"))
    _check(network, f"network '{name}'")
    return network


def full_name(name: str) -> str:
    """Returns the name with patch, window and image size that a short one stands for; every other as it is."""
    return _SHORT.get(name, name)


def _check(network: Network, where: str) -> None:
    for field in ("num_classes", "image_size", "image_channels"):
        value = getattr(network, field)
        if value < 1:
            raise UserError(f"{where}: {field}={value!r} will not do; a whole number above zero will")
    for field in ("dropout", "drop_path"):
        if not 0 <= getattr(network, field, 0.0) < 1:
            raise UserError(f"{where}: {field}={getattr(network, field)} is not in [0, 1)")
    for field in ("widths", "depths", "blocks", "heads", "strides"):
        value = getattr(network, field, None)
        if isinstance(value, tuple | list) and len(value) != 4:
            raise UserError(f"{where}: {field} has a number for each of four stages; got {value}")
    if not all(value > 0 for value in network.std):
        raise UserError(f"{where}: std={network.std} will not do; numbers above zero will")
    if not 0 < network.crop <= 1:
        raise UserError(f"{where}: crop={network.crop} is not in (0, 1]")
    if network.interpolation not in ("bilinear", "bicubic"):
        raise unknown("interpolation", network.interpolation, ("bilinear", "bicubic"), where)

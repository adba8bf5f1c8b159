"""The zoo: one network family a file, and one registry of named variants."""

from lfcc_jax.errors import checked_arguments, unknown
from lfcc_jax.models import mixer, resnet, vit
from lfcc_jax.models.network import FeatureInfo, Network, Output

__all__ = ["FeatureInfo", "Network", "Output", "create", "list_models"]

_VARIANTS = mixer.VARIANTS | resnet.VARIANTS | vit.VARIANTS


def list_models() -> list[str]:
    """Returns the names that `create` takes, sorted."""
    return sorted(_VARIANTS)


def create(name: str, num_classes: int, image_size: int, **overrides: object) -> Network:
    """Returns the network called `name`, not yet initialised.

    Args:
      name: one of `list_models()`.
      num_classes: width of the classifier.
      image_size: height and width of the images, in pixels.
      **overrides: fields of the network's class that differ from the named variant, for example `dropout=0.1`.

    Returns:
      A Linen module with the calling convention of `Network`.

    Raises:
      UserError: for an unknown name or field, with the nearest one.

    Examples:
      >>> model = create("vit_nano", num_classes=10, image_size=8, image_channels=1)
      >>> model.feature_info()["stage4"]
      FeatureInfo(height=4, width=4, channels=96)
    """
    if name not in _VARIANTS:
        raise unknown("network", name, _VARIANTS)
    family, fields = _VARIANTS[name]
    given = {"num_classes": num_classes, "image_size": image_size} | fields | overrides
    return family(**checked_arguments(family, given, f"network '{name}'"))

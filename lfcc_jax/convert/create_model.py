"""The `timm.create_model` call that rebuilds a network, to load an exported file with timm."""

from pathlib import Path

from lfcc_jax import models
from lfcc_jax.arguments import signature
from lfcc_jax.models import Network
from lfcc_jax.models.convnext import ConvNeXt
from lfcc_jax.models.efficientnet import EfficientNet
from lfcc_jax.models.mixer import Mixer
from lfcc_jax.models.mobilenet import MobileNetV2
from lfcc_jax.models.mobilenetv3 import MobileNetV3
from lfcc_jax.models.resmlp import ResMLP
from lfcc_jax.models.resnet import ResNet
from lfcc_jax.models.swin import Swin
from lfcc_jax.models.vit import ViT

# For each class, the timm networks to start from if timm has none of the same name, and timm's names for our fields.
# timm's Mixer and ResMLP have fixed widths and depths. Unlike ours, its ConvNeXt with patches of 2 pixels downsamples
# before the first stage.
_FAMILIES: dict[type[Network], tuple[tuple[str, ...], dict[str, str]]] = {
    ConvNeXt: (("convnext_tiny", "convnextv2_atto"), {"widths": "dims", "depths": "depths"}),
    EfficientNet: (("efficientnet_b0",), {}),
    Mixer: (("mixer_s16_224", "mixer_b16_224"), {"image_size": "img_size"}),
    MobileNetV2: (("mobilenetv2_100", "mobilenetv2_140"), {}),
    MobileNetV3: (("mobilenetv3_large_100",), {}),
    ResMLP: (("resmlp_12_224", "resmlp_24_224"), {"image_size": "img_size"}),
    ResNet: (("resnet18", "resnet50"), {"blocks": "layers", "widths": "channels"}),
    Swin: (
        ("swin_tiny_patch4_window7_224",),
        {
            "image_size": "img_size",
            "patch": "patch_size",
            "width": "embed_dim",
            "depths": "depths",
            "heads": "num_heads",
            "window": "window_size",
            "mlp_ratio": "mlp_ratio",
        },
    ),
    ViT: (
        ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"),
        {
            "image_size": "img_size",
            "patch": "patch_size",
            "width": "embed_dim",
            "depth": "depth",
            "heads": "num_heads",
            "mlp_ratio": "mlp_ratio",
            "layer_scale": "init_values",
            "qkv_bias": "qkv_bias",
        },
    ),
}
# Fields that are passed separately, or that are not part of timm's networks.
_NOT_COMPARED = ("num_classes", "image_size", "image_channels", "mean", "std", "taps")


def create_model_call(name: str, network: Network, path: str | Path) -> str | None:
    """Returns Python code that builds timm's counterpart of a network and loads its tensors from a file.

    Dropout rates are left out, since only training uses them.

    Args:
      name: Name of the network; see `lfcc_jax.models.create`.
      network: The network; its fields may differ from the defaults of that name.
      path: Path of the tensors, written by `lfcc_jax.convert.files.write_safetensors`.

    Returns:
      The call, or None if timm cannot build such a network.

    Examples:
      >>> print(create_model_call("resnet18", models.create("resnet18", 10, blocks=(1, 1, 1, 1)), "x.safetensors"))
      timm.create_model("resnet18", num_classes=10, layers=(1, 1, 1, 1), checkpoint_path="x.safetensors")
      >>> print(create_model_call("resnet18_32", models.create("resnet18_32", 10), "x.safetensors"))
      None
    """
    bases, arguments = next((entry for family, entry in _FAMILIES.items() if isinstance(network, family)), ((), {}))
    same_name = (models.full_name(name),) if models.variant(name).in_timm else ()
    for base in (*same_name, *bases):
        changed = _changed_fields(network, models.create(base, network.num_classes, network.image_size))
        if not changed.keys() <= arguments.keys():
            continue
        keywords = {"num_classes": network.num_classes}
        if network.image_channels != 3:
            keywords["in_chans"] = network.image_channels
        if "image_size" in arguments:
            keywords["img_size"] = network.image_size
        keywords |= {arguments[field]: value for field, value in changed.items()}
        listed = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        return f'timm.create_model("{base}", {listed}, checkpoint_path="{path}")'
    return None


def _changed_fields(network: Network, base: Network) -> dict[str, object]:
    """Returns the fields that differ from `base`, a network of the same class, with values converted to timm's."""
    fields = [name for name in signature(type(network)) if name not in network.free_fields | {*_NOT_COMPARED}]
    ours, theirs = ({field: getattr(x, field) for field in fields} for x in (network, base))
    if isinstance(network, ConvNeXt):
        ours["layer_scale"], theirs["layer_scale"] = (x.layer_scale is None for x in (network, base))
    if isinstance(network, ResNet):
        for values in (ours, theirs):
            values["stem_width"] = values["stem_width"] or values["widths"][0]
            expansion = 4 if values["block"] == "bottleneck" else 1  # timm counts the channels inside a block
            values["widths"] = tuple(width // expansion for width in values["widths"])
    return {field: value for field, value in ours.items() if value != theirs[field]}

"""timm's networks as in the benchmark, and their four stages. Needs torch, torchvision and timm."""

import torch

try:
    import torchvision  # noqa: F401 - registers its operators on import
except (AttributeError, RuntimeError):
    # torchvision built for a different torch fails on import. Its operators are not used here, so stubs suffice.
    _operators = torch.library.Library("torchvision", "DEF")
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

# Variants of the benchmark that have no name in timm.
OWN = {
    "swin_nano_patch4_window7_224": {"embed_dim": 64, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)},
    "swin_pico_patch4_window7_224": {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)},
}
_CONVOLUTIONAL = ("resnet", "mobilenetv2", "mobilenetv3", "efficientnet", "convnext")


# timm's names of fields that the cases change.
_FIELDS = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "widths": "dims", "depths": "depths"}


__all__ = ["build", "pooled", "resample_abs_pos_embed", "resize_rel_pos_bias_table", "run"]


def build(name, num_classes, image_size, changed=()):
    """Returns the timm network of this name without stochastic depth; `changed` are fields of ours."""
    settings = {"num_classes": num_classes, "drop_path_rate": 0.0} | OWN.get(name, {})
    settings |= {_FIELDS[key]: value for key, value in dict(changed).items() if key in _FIELDS}
    if not name.startswith(_CONVOLUTIONAL):
        settings["img_size"] = image_size
    return timm.create_model("swin_tiny_patch4_window7_224" if name in OWN else name, **settings)


def stages(network, taps):
    """Returns the four modules whose outputs are the stages; `taps` selects them in networks of equal blocks."""
    if isinstance(network, timm.models.ResNet):
        return [network.layer1, network.layer2, network.layer3, network.layer4]
    if isinstance(network, timm.models.EfficientNet):  # MobileNetV2 too
        return [network.blocks[1], network.blocks[2], network.blocks[4], network.bn2]
    if isinstance(network, timm.models.MobileNetV3):
        return [network.blocks[1], network.blocks[2], network.blocks[4], network.blocks[6]]
    if isinstance(network, timm.models.ConvNeXt):
        return list(network.stages)
    if isinstance(network, timm.models.SwinTransformer):
        return [layer.blocks for layer in network.layers]
    return [network.blocks[tap - 1] for tap in taps]


def run(network, images, taps, train=False):
    """Returns logits and the four stages as `[B, H, W, C]`, float64, for normalized images `[B, H, W, 3]`."""
    outputs = []
    hooks = [stage.register_forward_hook(lambda *call: outputs.append(call[-1])) for stage in stages(network, taps)]
    with torch.no_grad():
        logits = network.double().train(train)(torch.tensor(images).double().permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    return logits.numpy(), [_map(output.numpy()) for output in outputs]


def pooled(network, images):
    """Returns what the classifier reads, `[B, C]`, float64, for normalized images `[B, H, W, 3]`."""
    with torch.no_grad():
        features = network.double().eval().forward_features(torch.tensor(images).double().permute(0, 3, 1, 2))
        return network.forward_head(features, pre_logits=True).numpy()


def _map(x):
    if x.ndim == 3:  # tokens, possibly with class token and registers, fewer than another row and column
        size = int(x.shape[1] ** 0.5)
        return x[:, x.shape[1] - size * size :].reshape(x.shape[0], size, size, -1)
    # timm's Swin is channels-last, as ours; its convolutional networks are channels-first.
    return x if x.shape[1] == x.shape[2] else x.transpose(0, 2, 3, 1)

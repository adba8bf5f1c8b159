"""Maps timm's tensors to our arrays: one table for each network family."""

import math
from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lfcc_jax.errors import UserError
from lfcc_jax.models import Network, efficientnet, mobilenet, mobilenetv3
from lfcc_jax.models.convnext import ConvNeXt
from lfcc_jax.models.efficientnet import EfficientNet
from lfcc_jax.models.mixer import Mixer
from lfcc_jax.models.mobilenet import MobileNetV2
from lfcc_jax.models.mobilenetv3 import MobileNetV3
from lfcc_jax.models.resmlp import ResMLP
from lfcc_jax.models.resnet import ResNet
from lfcc_jax.models.swin import Swin
from lfcc_jax.models.vit import ViT


class Layout(NamedTuple):
    """Axis permutations between timm's layout and ours."""

    from_timm: Callable[[np.ndarray], np.ndarray]
    to_timm: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(np.transpose, np.transpose)  # [out, in] and [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW and HWIO
POINTWISE = Layout(lambda x: x[..., 0, 0].T, lambda x: x.T[..., None, None])  # [out, in, 1, 1] and [in, out]
VECTOR = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1))  # [1, 1, channels] and [channels]


class Row(NamedTuple):
    """One tensor of timm.

    Attributes:
      timm: Its name.
      path: Path of our array. None if we have none: BatchNorm's count of batches, which is exported as zero.
      block: Index in a stack of blocks, or None if the array is not stacked.
      layout: Its layout.
    """

    timm: str
    path: tuple[str, ...] | None
    block: int | None = None
    layout: Layout = SAME


def table(network: Network) -> list[Row]:
    """Returns the rows of a network, which contain every timm tensor and every array of ours exactly once.

    A network without classes has no rows for the classifier.

    Raises:
      UserError: if timm does not have this family.
    """
    for family, rows in _TABLES.items():
        if isinstance(network, family):
            return [row for row in rows(network) if network.num_classes or not is_head(row)]
    raise UserError(f"timm has no networks like {type(network).__name__}, so there is no table of their tensors")


def is_head(row: Row) -> bool:
    """Returns whether a row is of the classifier."""
    return row.path is not None and row.path[:2] == ("params", "head")


def _param(timm: str, path: str, block: int | None = None, layout: Layout = SAME) -> Row:
    return Row(timm, ("params", *path.split("/")), block, layout)


def _linear(
    timm: str, path: str, block: int | None = None, layout: Layout = LINEAR, bias: bool = True
) -> Iterator[Row]:
    yield _param(f"{timm}.weight", f"{path}/kernel", block, layout)
    if bias:
        yield _param(f"{timm}.bias", f"{path}/bias", block)


def _conv(timm: str, path: str, block: int | None = None, bias: bool = True) -> Iterator[Row]:
    return _linear(timm, path, block, CONV, bias)


def _norm(timm: str, path: str, block: int | None = None) -> Iterator[Row]:
    yield _param(f"{timm}.weight", f"{path}/scale", block)
    yield _param(f"{timm}.bias", f"{path}/bias", block)


def _affine(timm: str, path: str, block: int | None = None) -> Iterator[Row]:
    yield _param(f"{timm}.alpha", f"{path}/alpha", block, VECTOR)
    yield _param(f"{timm}.beta", f"{path}/beta", block, VECTOR)


def _batch_norm(timm: str, path: str) -> Iterator[Row]:
    yield from _norm(timm, path)
    yield Row(f"{timm}.running_mean", ("batch_stats", *path.split("/"), "mean"))
    yield Row(f"{timm}.running_var", ("batch_stats", *path.split("/"), "var"))
    yield Row(f"{timm}.num_batches_tracked", None)


def _resnet(network: ResNet) -> Iterator[Row]:
    yield from _conv("conv1", "stem_conv", bias=False)
    yield from _batch_norm("bn1", "stem_norm")
    convolutions = 3 if network.block == "bottleneck" else 2
    width = network.stem_width or network.widths[0]
    for s, (count, stride) in enumerate(zip(network.blocks, network.strides, strict=True), start=1):
        for b in range(count):
            timm, path = f"layer{s}.{b}", f"stage{s}_block{b}"
            for c in range(1, convolutions + 1):
                yield from _conv(f"{timm}.conv{c}", f"{path}/conv{c}", bias=False)
                yield from _batch_norm(f"{timm}.bn{c}", f"{path}/norm{c}")
            if b == 0 and (stride > 1 or width != network.widths[s - 1]):
                yield from _conv(f"{timm}.downsample.0", f"{path}/shortcut_conv", bias=False)
                yield from _batch_norm(f"{timm}.downsample.1", f"{path}/shortcut_norm")
        width = network.widths[s - 1]
    yield from _linear("fc", "head")


def _inverted_residuals(groups: Iterable[tuple[int, bool]], squeezed: Container[int] = ()) -> Iterator[Row]:
    """Yields the rows of the stem and of blocks, given their number in each group and whether these expand."""
    yield from _conv("conv_stem", "stem_conv", bias=False)
    yield from _batch_norm("bn1", "stem_norm")
    for g, (count, expands) in enumerate(groups):
        layers = [("conv_dw", "depthwise"), ("conv_pwl", "project")]
        # timm names the last convolution differently in blocks without expansion.
        layers = [("conv_pw", "expand"), *layers] if expands else [layers[0], ("conv_pw", "project")]
        for b in range(count):
            timm, path = f"blocks.{g}.{b}", f"group{g}_block{b}"
            for n, (theirs, ours) in enumerate(layers, start=1):
                yield from _conv(f"{timm}.{theirs}", f"{path}/{ours}_conv", bias=False)
                yield from _batch_norm(f"{timm}.bn{n}", f"{path}/{ours}_norm")
            for layer in ("reduce", "expand") if g in squeezed else ():
                yield from _linear(f"{timm}.se.conv_{layer}", f"{path}/squeeze_excite/{layer}", layout=POINTWISE)


def _mobilenet(network: MobileNetV2) -> Iterator[Row]:
    yield from _inverted_residuals((math.ceil(g.count * network.depth), g.expansion > 1) for g in mobilenet.GROUPS)
    yield from _conv("conv_head", "last_conv", bias=False)
    yield from _batch_norm("bn2", "last_norm")
    yield from _linear("classifier", "head")


def _efficientnet(network: EfficientNet) -> Iterator[Row]:
    groups = ((len(group.expansions), group.expansions[0] > 1) for group in efficientnet.GROUPS)
    yield from _inverted_residuals(groups, range(len(efficientnet.GROUPS)))
    yield from _conv("conv_head", "last_conv", bias=False)
    yield from _batch_norm("bn2", "last_norm")
    yield from _linear("classifier", "head")


def _mobilenetv3(network: MobileNetV3) -> Iterator[Row]:
    groups = ((len(group.expansions), group.expansions[0] > 1) for group in mobilenetv3.GROUPS)
    yield from _inverted_residuals(groups, mobilenetv3.SQUEEZED)
    last = f"blocks.{len(mobilenetv3.GROUPS)}.0"
    yield from _conv(f"{last}.conv", "last_conv", bias=False)
    yield from _batch_norm(f"{last}.bn1", "last_norm")
    yield from _linear("conv_head", "pooled", layout=POINTWISE)
    yield from _linear("classifier", "head")


def _convnext(network: ConvNeXt) -> Iterator[Row]:
    yield from _conv("stem.0", "stem_conv")
    yield from _norm("stem.1", "stem_norm")
    for s, depth in enumerate(network.depths):
        if s > 0:
            yield from _norm(f"stages.{s}.downsample.0", f"stage{s + 1}_down_norm")
            yield from _conv(f"stages.{s}.downsample.1", f"stage{s + 1}_down_conv")
        for b in range(depth):
            timm, path = f"stages.{s}.blocks.{b}", f"stage{s + 1}_blocks"
            yield from _conv(f"{timm}.conv_dw", f"{path}/depthwise_conv", b)
            yield from _norm(f"{timm}.norm", f"{path}/norm", b)
            for layer in ("fc1", "fc2"):  # 1x1 convolutions in timm's small ConvNeXts V2
                layout = POINTWISE if network.response_norm else LINEAR
                yield from _linear(f"{timm}.mlp.{layer}", f"{path}/mlp/{layer}", b, layout)
            if network.response_norm:
                yield from _norm(f"{timm}.mlp.grn", f"{path}/mlp/grn", b)
            if network.layer_scale is not None:
                yield _param(f"{timm}.gamma", f"{path}/scale/scale", b)
    yield from _norm("head.norm", "norm")
    yield from _linear("head.fc", "head")


def _vit(network: ViT) -> Iterator[Row]:
    rotary = network.positions == "rotary"  # a class of its own in timm, with other names
    if network.pooling != "attention":
        yield _param("cls_token", "class_token")
    if network.registers:
        yield _param("reg_token", "register_tokens")
    if not rotary:
        yield _param("pos_embed", "pos_embed")
    yield from _conv("patch_embed.proj", "patch_embed")
    for b in range(network.depth):
        for n in ("1", "2"):
            yield from _norm(f"blocks.{b}.norm{n}", f"blocks/norm{n}", b)
            if network.layer_scale is not None:
                yield _param(f"blocks.{b}.{f'gamma_{n}' if rotary else f'ls{n}.gamma'}", f"blocks/scale{n}/scale", b)
        yield from _linear(f"blocks.{b}.attn.qkv", "blocks/attn/qkv", b, bias=network.qkv_bias)
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            yield from _linear(f"blocks.{b}.{layer}", f"blocks/{layer.replace('.', '/')}", b)
    yield from _norm("norm", "norm")
    if network.pooling == "attention":
        yield _param("attn_pool.latent", "attn_pool/latent")
        for layer in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2"):
            yield from _linear(f"attn_pool.{layer}", f"attn_pool/{layer.replace('.', '/')}")
        yield from _norm("attn_pool.norm", "attn_pool/norm")
    yield from _linear("head", "head")


def _swin(network: Swin) -> Iterator[Row]:
    yield from _conv("patch_embed.proj", "patch_embed")
    yield from _norm("patch_embed.norm", "patch_norm")
    for s, depth in enumerate(network.depths):
        if s > 0:
            yield from _norm(f"layers.{s}.downsample.norm", f"stage{s + 1}_merge_norm")
            yield from _linear(f"layers.{s}.downsample.reduction", f"stage{s + 1}_merge", bias=False)
        for b in range(depth):
            timm, path = f"layers.{s}.blocks.{b}", f"stage{s + 1}_blocks"
            yield _param(f"{timm}.attn.relative_position_bias_table", f"{path}/attn/position_bias", b)
            for norm in ("norm1", "norm2"):
                yield from _norm(f"{timm}.{norm}", f"{path}/{norm}", b)
            for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
                yield from _linear(f"{timm}.{layer}", f"{path}/{layer.replace('.', '/')}", b)
    yield from _norm("norm", "norm")
    yield from _linear("head.fc", "head")


def _mixer(network: Mixer) -> Iterator[Row]:
    yield from _conv("stem.proj", "patch_embed")
    for b in range(network.depth):
        for norm in ("norm1", "norm2"):
            yield from _norm(f"blocks.{b}.{norm}", f"blocks/{norm}", b)
        for layer in ("mlp_tokens.fc1", "mlp_tokens.fc2", "mlp_channels.fc1", "mlp_channels.fc2"):
            yield from _linear(f"blocks.{b}.{layer}", f"blocks/{layer.replace('.', '/')}", b)
    yield from _norm("norm", "norm")
    yield from _linear("head", "head")


def _resmlp(network: ResMLP) -> Iterator[Row]:
    yield from _conv("stem.proj", "patch_embed")
    for b in range(network.depth):
        for n in ("1", "2"):
            yield from _affine(f"blocks.{b}.norm{n}", f"blocks/norm{n}", b)
            yield _param(f"blocks.{b}.ls{n}", f"blocks/scale{n}/scale", b)
        for layer in ("linear_tokens", "mlp_channels.fc1", "mlp_channels.fc2"):
            yield from _linear(f"blocks.{b}.{layer}", f"blocks/{layer.replace('.', '/')}", b)
    yield from _affine("norm", "norm")
    yield from _linear("head", "head")


_TABLES = {
    ConvNeXt: _convnext,
    EfficientNet: _efficientnet,
    Mixer: _mixer,
    MobileNetV2: _mobilenet,
    MobileNetV3: _mobilenetv3,
    ResMLP: _resmlp,
    ResNet: _resnet,
    Swin: _swin,
    ViT: _vit,
}

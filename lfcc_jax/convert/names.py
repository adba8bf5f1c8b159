"""Renames tensors of trainers' checkpoints, authors' releases and older timm to the names used by current timm."""

import re
from collections.abc import Mapping
from typing import Any

from lfcc_jax.models import Network
from lfcc_jax.models.convnext import ConvNeXt
from lfcc_jax.models.swin import Swin

# Stored by older timm releases; current timm recomputes them from the window size.
_BUFFERS = re.compile(r"relative_position_index|attn_mask")
_CONVNEXT_AUTHORS = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def timm_names(network: Network, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors under the names used by current timm; unknown names are kept."""
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state_dict.items()}
    if isinstance(network, ConvNeXt) and "downsample_layers.0.0.weight" in state:
        state = {_rename(name, _CONVNEXT_AUTHORS): value for name, value in state.items()}
    if isinstance(network, Swin):
        state = {name: value for name, value in state.items() if not _BUFFERS.search(name)}
        state = {re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name): value for name, value in state.items()}
        if "layers.0.downsample.reduction.weight" in state:  # current timm: in the next stage
            state = {
                re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): value
                for name, value in state.items()
            }
    return state


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name

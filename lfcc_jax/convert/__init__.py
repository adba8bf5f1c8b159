"""timm checkpoints in and out (`from_timm`, `to_timm`, `python -m lfcc_jax.convert`), and ONNX."""

from lfcc_jax.convert.timm import from_timm, to_timm

__all__ = ["from_timm", "to_timm"]

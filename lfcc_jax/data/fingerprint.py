"""Identifies a split by its content, to detect different data under the same name."""

import hashlib
from typing import Any

import numpy as np

from lfcc_jax.data.examples import read
from lfcc_jax.data.source import Source

_SAMPLES = 8


def fingerprint(source: Source) -> dict[str, Any]:
    """Returns the sizes of a split, a digest of a few images and labels, and one of the paths of all files, if any.

    Raises:
      UserError: if one of these images cannot be read.
    """
    digest = hashlib.sha256()
    for index in np.linspace(0, len(source.examples) - 1, _SAMPLES).astype(int).tolist():
        example = read(source, index)
        digest.update(np.asarray(example["image"]).tobytes())
        digest.update(str(example.get("label", "")).encode())
    of_all = {"files": source.examples.digest()} if hasattr(source.examples, "digest") else {}
    return of_all | {
        "name": source.name,
        "examples": len(source.examples),
        "num_classes": source.num_classes,
        "image_size": source.image_size,
        "image_channels": source.image_channels,
        "digest": digest.hexdigest()[:12],
    }

"""Checkpoint files: `.safetensors` and `.npz` with numpy, `.pth` where torch is installed."""

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from lfcc_jax.errors import UserError, unknown


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Returns the tensors of a checkpoint file by name, as numpy arrays or torch tensors.

    Args:
      path: ends in `.safetensors`, `.npz`, `.pth`, `.pt` or `.bin`; the last three are torch's, read without running
        any code that they may hold.

    Raises:
      UserError: if there is no such file, its kind is unknown, it is no checkpoint, or torch is not installed.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise unknown("kind of checkpoint file", path.suffix or path.name, _READERS, str(path))
    if not path.is_file():
        raise UserError(f"no checkpoint file at {path}")
    try:
        state = _READERS[path.suffix](path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no {path.suffix} checkpoint of tensors alone; of a trainer's, save the state_dict by itself"
        ) from error
    except _UNREADABLE as error:
        raise UserError(f"{path} is no {path.suffix} checkpoint: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not tensors by name (a state dict)")
    return dict(state)


def write_safetensors(path: str | Path, state: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes tensors by name, and a few words about them, to a new file.

    Raises:
      UserError: if the file exists, or does not end in `.safetensors`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"timm reads .safetensors; got {path}")
    if path.exists():
        raise UserError(f"{path} is there already; name another file, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(dict(state), path, dict(about))


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 hash of a file, by which its origin can be told."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading torch's files needs torch (pip install torch); .safetensors does not"
        ) from error
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": safetensors.numpy.load_file,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
}
_UNREADABLE = (
    SafetensorError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    OSError,
)

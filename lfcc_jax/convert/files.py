"""Checkpoint files: `.safetensors` and `.npz` with numpy, and torch's formats if torch is installed."""

import argparse
import contextlib
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from lfcc_jax.errors import UserError, unknown


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Returns the tensors of a checkpoint file by name, as numpy arrays or torch tensors.

    Args:
      path: A `.safetensors`, `.npz`, `.pth`, `.pth.tar`, `.pt` or `.bin` file. All but the first two are torch's, and
        are read without running any code in them.

    Raises:
      UserError: if the file does not exist, is not a checkpoint of a supported kind, does not fit into memory, or needs
        torch, which is not installed.
    """
    path = Path(path)
    suffix = next((suffix for suffix in _READERS if path.name.endswith(suffix)), None)
    if suffix is None:
        raise unknown("kind of checkpoint file", path.suffix or path.name, _READERS, str(path))
    if not path.is_file():
        raise UserError(f"no checkpoint file at {path}")
    try:
        state = _READERS[suffix](path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a {suffix} checkpoint of tensors only; if it is a trainer's, save its state_dict alone"
        ) from error
    except _UNREADABLE as error:
        raise UserError(f"{path} is not a {suffix} checkpoint: {' '.join(str(error).split())[:200]}") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit into memory: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} must contain a state dict, got {type(state).__name__}")
    return dict(state)


def write_safetensors(path: str | Path, state: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes named tensors and string metadata to a new file.

    Raises:
      UserError: if the file exists, cannot be written, or its name does not end in `.safetensors`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"the name of the file must end in .safetensors, got {path}")
    if os.path.lexists(path):
        raise UserError(f"{path} already exists; name another file, or remove it")
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(dict(state), partial, dict(about))
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = np.load(path, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is an .npy file of one array, not an .npz file")
    with arrays:
        return dict(arrays)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    tensors = safetensors.deserialize(path.read_bytes())
    if unsupported := sorted({x["dtype"] for _, x in tensors} - _DTYPES.keys()):
        raise UserError(f"{path} has tensors of dtype {', '.join(unsupported)}; supported: {', '.join(_DTYPES)}")
    return {name: np.frombuffer(x["data"], _DTYPES[x["dtype"]]).reshape(x["shape"]) for name, x in tensors}


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} requires torch (pip install torch); .safetensors files do not") from error
    # timm's trainer also saves its arguments, which are harmless.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


# Keyed by safetensors' names. 8-bit floats need scales, which every quantizer stores differently.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pth.tar": _read_torch,
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

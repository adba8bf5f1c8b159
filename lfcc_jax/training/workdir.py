"""The work directory of a run: claimed by the first start, recognized by every later one."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from lfcc_jax import storage
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import as_dict

# Bytes that a checkpoint takes besides its arrays: their names, shapes, shardings and places in the files.
_OVERHEAD = 1_000_000


def claim_workdir(workdir: epath.PathLike, config: Mapping[str, Any], num_bytes: int = 0) -> epath.Path:
    """Returns the work directory, created or that of the same run.

    Writes `config.json` into it, which identifies the run.

    Args:
      workdir: Local directory or `gs://BUCKET/...`.
      config: The run's config.
      num_bytes: Size of a checkpoint. A new run does not start unless there is room for one.

    Raises:
      UserError: if another run lives there, with every value that differs; if it cannot be written.
    """
    workdir = storage.resolve(workdir, "--workdir")
    path = workdir / "config.json"
    check_same_run(workdir, config)
    if not storage.exists(path) and jax.process_index() == 0:
        storage.check_writable(workdir, "--workdir", num_bytes + _OVERHEAD)
        storage.make_directory(workdir)
        storage.write_json(path, as_dict(config))
    return workdir


def check_same_run(workdir: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Does nothing if a work directory is free or that of the same run; writes nothing.

    Raises:
      UserError: if another run lives there, with every value that differs.
    """
    workdir = storage.resolve(workdir, "--workdir")
    path = workdir / "config.json"
    if storage.exists(path):
        ours, theirs = json.loads(storage.to_json(as_dict(config))), storage.read_json(path)
        if not isinstance(theirs, dict):
            raise UserError(f"{path} is damaged: it must be an object, got {type(theirs).__name__}")
        differ = [f"{key} is {there} there and {here} here" for key, there, here in _differences(theirs, ours)]
        if differ:
            raise UserError(f"{workdir} holds a different run: {'; '.join(differ)}. Give another --workdir.")
    elif storage.exists(workdir / "checkpoints"):
        raise UserError(f"{workdir} holds checkpoints of an unknown run: config.json is missing")


def _differences(there: Any, here: Any, prefix: str = "config") -> list[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(there.keys() | here.keys())
        absent = "absent"
        return [d for k in keys for d in _differences(there.get(k, absent), here.get(k, absent), f"{prefix}.{k}")]
    return [] if there == here else [(prefix, there, here)]

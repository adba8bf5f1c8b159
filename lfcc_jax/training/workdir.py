"""The work directory of a run: claimed by the first start, recognized by every later one, locked while in use."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from lfcc_jax import storage
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import as_dict, differences
from lfcc_jax.training.processes import gather, in_first_process
from lfcc_jax.training.summary import read_summary

# What may change between two starts of the same run, since no weight and no reported result depends on it.
# `eval_every_epochs` is not among them: it decides which checkpoint is the best one.
_FREE = ("log_every_steps", "checkpoint_every_steps", "data.workers")
_PATIENCE_SECONDS = 5.0

# Bytes that a checkpoint takes besides its arrays: their names, shapes, shardings and places in the files.
_OVERHEAD = 1_000_000


def claim_workdir(
    workdir: epath.PathLike,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    held: contextlib.ExitStack,
    num_bytes: int = 0,
) -> epath.Path:
    """Returns the work directory, created or that of the same run, and locks it. All processes must call this together.

    Writes `config.json` and `inputs.json`, which identify the run. They keep the values of the first start.

    Args:
      workdir: Local directory or `gs://BUCKET/...`, the same for all processes.
      config: The run's config.
      inputs: What the config refers to, the data and the teacher, as JSON values that change if their content does.
      held: Releases the lock when it is closed.
      num_bytes: Size of a checkpoint. A new run does not start unless there is room for one.

    Raises:
      UserError: in every process, if the directory contains a different run, is in use by another one, cannot be
        written, or is not shared by all processes.
    """
    workdir = storage.resolve(workdir, "--workdir")

    def claim() -> None:
        check_same_run(workdir, config, inputs)
        if not storage.exists(workdir / "config.json"):
            storage.check_writable(workdir, "--workdir", num_bytes + _OVERHEAD)
        storage.make_directory(workdir)
        _lock(workdir, held)
        check_same_run(workdir, config, inputs)  # the run that had the lock may have written it just now
        for name, value in (("inputs.json", inputs), ("config.json", as_dict(config))):
            if not storage.exists(workdir / name):
                storage.write_json(workdir / name, value)

    in_first_process(claim)
    _check_shared(workdir)
    return workdir


def finished_summary(workdir: epath.PathLike, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the summary of a run that has ended in this directory, or None. All processes must call this together.

    Raises:
      UserError: in every process, as `check_same_run`.
    """
    found: list[dict[str, Any] | None] = []

    def look() -> None:
        check_same_run(workdir, config)
        found.append(read_summary(storage.resolve(workdir, "--workdir")))

    in_first_process(look)
    return gather(found[0] if found else None)[0]


def check_same_run(workdir: epath.PathLike, config: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> None:
    """Checks that a work directory is free or that of the same run; writes nothing.

    Args:
      workdir: Directory that need not exist.
      config: The run's config.
      inputs: As in `claim_workdir`; not compared if None.

    Raises:
      UserError: if it contains a different run, with every value that differs, or a file in it is damaged.
    """
    workdir = storage.resolve(workdir, "--workdir")
    path = workdir / "config.json"
    if storage.exists(path):
        found = differences(_read(path), _plain(as_dict(config)))
        found = [difference for difference in found if difference[0].removeprefix("config.") not in _FREE]
        if inputs is not None and storage.exists(workdir / "inputs.json"):
            found += differences(_read(workdir / "inputs.json"), _plain(inputs), "")
        if found:
            changes = "; ".join(f"{key} was {before}, now {now}" for key, before, now in found)
            raise UserError(f"{workdir} already contains a different run: {changes}; choose another --workdir")
    elif storage.exists(workdir / "checkpoints"):
        raise UserError(f"{workdir} contains checkpoints of an unknown run: config.json is missing")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a value as JSON would bring it back."""
    return json.loads(storage.to_json(value))


def _read(path: epath.Path) -> dict[str, Any]:
    value = storage.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it must contain a JSON object, got {type(value).__name__}")
    return value


def _lock(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    """Locks a local work directory until `held` is closed, or this process ends in whatever way.

    The kernel keeps the lock, so a run that was killed never blocks its successor; no child inherits it, since Python
    opens files as close-on-exec and nothing here forks without exec. On NFS, Linux turns flock into a lock of the
    server, which may keep that of a host that lost power until its lease is over (90 s by default); where locks are
    not supported, two runs in one directory are not noticed. Neither are they in a bucket: an owner file with a
    heartbeat would do, but it would make the successor of a run that was killed wait.

    Raises:
      UserError: if another run has locked the directory.
    """
    if storage.is_remote(workdir):
        return
    with storage.errors_in_one_line(f"cannot write {workdir / 'lock'}"):
        file = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    held.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(file, 200).decode(errors="replace").strip() or "an unknown process"
        raise UserError(f"{workdir} is in use by another run ({owner}); stop it or choose another --workdir") from error
    except OSError:
        return
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _sees(path: epath.Path) -> bool:
    try:
        return storage.exists(path)
    except (OSError, UserError):  # no permission, no credentials
        return False


def _check_shared(workdir: epath.Path) -> None:
    """Checks that all processes see what process 0 writes. Otherwise they would wait for its checkpoints for ever.

    The file has a random name, and nobody looks for it before it is there: NFS clients remember what did not exist.
    """
    if jax.process_count() == 1:
        return
    token = workdir / f".shared-{gather(secrets.token_hex(8))[0]}"

    def write() -> None:
        storage.write_text(token, "Checks that all processes of a run share this directory.\n")

    in_first_process(write)
    began = time.monotonic()
    while not (seen := _sees(token)) and time.monotonic() - began < _PATIENCE_SECONDS:
        time.sleep(0.2)
    blind = [process for process, sees in enumerate(gather(seen)) if not sees]
    if jax.process_index() == 0:
        token.unlink()
    if blind:
        raise UserError(
            f"`--workdir` must be a directory that all processes share, but process {blind[0]} does not see what "
            f"process 0 wrote to {workdir}; use a network disk or gs://"
        )

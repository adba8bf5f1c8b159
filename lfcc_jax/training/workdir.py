"""The work directory of a run: claimed on the first start, recognized on later ones, locked while in use."""

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

# Keys that may change when a run resumes, since no weight and no reported result depends on them, but by rounding.
# `eval_every_epochs` is not one of them: the best checkpoint depends on it.
_FREE = ("log_every_steps", "checkpoint_every_steps", "data.workers", "images_at_once")
_VISIBILITY_TIMEOUT = 5.0

# Size in bytes of a checkpoint's metadata: names, shapes, shardings and file offsets of its arrays.
_OVERHEAD = 1_000_000


def claim_workdir(
    workdir: epath.PathLike,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    held: contextlib.ExitStack,
    num_bytes: int = 0,
) -> epath.Path:
    """Creates and locks a work directory, or that of the same run. All processes must call this together.

    Writes `config.json` and `inputs.json`, which identify the run, on the first start only.

    Args:
      workdir: Local directory or `gs://BUCKET/...`, the same for all processes.
      config: The run's config.
      inputs: Identity of the data and the teacher, as JSON values that change with their content.
      held: Releases the lock when it is closed.
      num_bytes: Size of a checkpoint. A new run needs enough free space for one.

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
        check_same_run(workdir, config, inputs)  # the previous owner of the lock may just have written it
        for name, value in (("inputs.json", inputs), ("config.json", as_dict(config))):
            if not storage.exists(workdir / name):
                storage.write_json(workdir / name, value)

    in_first_process(claim)
    _check_shared(workdir)
    return workdir


def finished_summary(workdir: epath.PathLike, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the summary of the finished run in this directory, or None. All processes must call this together.

    Raises:
      UserError: in every process, as `check_same_run`.
    """
    summaries: list[dict[str, Any] | None] = []

    def read() -> None:
        check_same_run(workdir, config)
        summaries.append(read_summary(storage.resolve(workdir, "--workdir")))

    in_first_process(read)
    return gather(summaries[0] if summaries else None)[0]


def check_same_run(workdir: epath.PathLike, config: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> None:
    """Checks that a work directory is unused or that of the same run. Writes nothing.

    Args:
      workdir: Directory that need not exist.
      config: The run's config.
      inputs: As in `claim_workdir`; not compared if None.

    Raises:
      UserError: if it contains a different run (with the values that differ), or a damaged file.
    """
    workdir = storage.resolve(workdir, "--workdir")
    path = workdir / "config.json"
    if storage.exists(path):
        different = differences(_read(path), _plain(as_dict(config)))
        different = [(key, *values) for key, *values in different if not _is_free(key.removeprefix("config."), *values)]
        if inputs is not None and storage.exists(workdir / "inputs.json"):
            different += differences(_read(workdir / "inputs.json"), _plain(inputs), "")
        if different:
            changes = "; ".join(f"{key} was {before}, now {now}" for key, before, now in different)
            raise UserError(f"{workdir} already contains a different run: {changes}; choose another --workdir")
    elif storage.exists(workdir / "checkpoints"):
        raise UserError(f"{workdir} contains checkpoints of an unknown run: config.json is missing")


def _is_free(key: str, before: Any, now: Any) -> bool:
    """Returns whether a difference may be ignored: settings that change no result, one path in two forms."""
    paths = key.endswith(".checkpoint") and isinstance(before, str) and isinstance(now, str) and before and now
    return key in _FREE or bool(paths and storage.resolve(before) == storage.resolve(now))


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a value after a round trip through JSON."""
    return json.loads(storage.to_json(value))


def _read(path: epath.Path) -> dict[str, Any]:
    value = storage.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it must contain a JSON object, got {type(value).__name__}")
    return value


def _lock(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    """Locks a local work directory until `held` is closed or this process exits, even if it is killed.

    The kernel holds the lock, so a killed run never blocks its successor. Child processes do not inherit it, since
    Python opens files as close-on-exec and nothing here forks without exec. On NFS, Linux maps flock to a lock of the
    server, which may keep that of a host that lost power until its lease expires (90 s by default). If locks are not
    supported, two runs in one directory are not detected. Neither are they in a bucket: an owner file with a heartbeat
    would detect them, but would delay the successor of a killed run.

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


def _is_visible(path: epath.Path) -> bool:
    try:
        return storage.exists(path)
    except (OSError, UserError):  # no permission, no credentials
        return False


def _check_shared(workdir: epath.Path) -> None:
    """Checks that all processes see the files of process 0. Otherwise they would wait for its checkpoints forever.

    The file has a random name and is only looked up once it exists: NFS clients cache failed lookups.
    """
    if jax.process_count() == 1:
        return
    token = workdir / f".shared-{gather(secrets.token_hex(8))[0]}"

    def write() -> None:
        storage.write_text(token, "Checks that all processes of a run share this directory.\n")

    in_first_process(write)
    start_time = time.monotonic()
    while not (visible := _is_visible(token)) and time.monotonic() - start_time < _VISIBILITY_TIMEOUT:
        time.sleep(0.2)
    excluded = [process for process, ok in enumerate(gather(visible)) if not ok]
    if jax.process_index() == 0:
        token.unlink()
    if excluded:
        raise UserError(
            f"`--workdir` must be a directory that all processes share, but process {excluded[0]} does not see what "
            f"process 0 wrote to {workdir}; use a network disk or gs://"
        )

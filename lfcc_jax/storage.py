"""Files on a local disk or in a bucket (`gs://`): path handling, atomic writes, and one-line errors."""

import contextlib
import importlib.util
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from lfcc_jax.errors import UserError

# Buckets are accessed with gcsfs even if TensorFlow is installed: its client has other settings and errors. etils reads
# this once, at its first use of any path.
os.environ.setdefault("EPATH_USE_TF", "0")

# Modules that gs:// needs, and the packages that provide them. Orbax deletes checkpoints with google-cloud-storage.
_GCS_PACKAGES = {"gcsfs": "gcsfs", "google.cloud.storage": "google-cloud-storage"}


def resolve(path: epath.PathLike, name: str = "path") -> epath.Path:
    """Returns an absolute path, with `~` expanded. A `gs://` path is returned unchanged.

    Args:
      path: Local path or `gs://BUCKET/...`.
      name: Flag or config key that the path came from, for the error message.

    Raises:
      UserError: if the path is empty or its scheme unsupported, or packages that `gs://` needs are missing.

    Examples:
      >>> resolve("gs://bucket/runs/../x", "--workdir")
      Traceback (most recent call last):
      ...
      lfcc_jax.errors.UserError: `--workdir` must not contain '..' in a bucket, got 'gs://bucket/runs/../x'
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"`{name}` must be a path, got {path!r}")
    text = os.fspath(path)
    if not text.strip():
        raise UserError(f"`{name}` must not be empty; name a directory, for example runs/first")
    if "\0" in text:
        raise UserError(f"`{name}` must not contain a null character, got {text!r}")
    scheme, separator, rest = text.partition(":/")
    if not separator or "/" in scheme:
        return epath.Path(os.path.abspath(os.path.expanduser(text)))
    if scheme != "gs":
        raise UserError(f"`{name}` must be a local path or gs://BUCKET/..., got '{text}'")
    if not rest.startswith("/"):  # pathlib.Path("gs://b/x") is gs:/b/x
        raise UserError(f"`{name}` must begin with gs://, got '{text}'; pass a string, not a pathlib.Path")
    if not rest[1:].split("/")[0]:
        raise UserError(f"`{name}` must name a bucket, gs://BUCKET/..., got '{text}'")
    if ".." in rest.split("/"):
        raise UserError(f"`{name}` must not contain '..' in a bucket, got '{text}'")
    _require_gcs(name, text)
    return epath.Path(text)


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a resolved path is in a bucket."""
    return "://" in os.fspath(path)


def check_writable(directory: epath.Path, name: str, num_bytes: int = 0) -> None:
    """Raises unless files can be written to a directory, which need not exist. Creates nothing.

    Args:
      directory: Resolved path.
      name: Flag that the path came from, for the error message.
      num_bytes: Space that must be free on a local disk.

    Raises:
      UserError: if the path or one of its parents is a file, the directory is not writable, the disk is too full, or
        the bucket cannot be reached.
    """
    if is_remote(directory):
        bucket = epath.Path("gs://" + os.fspath(directory).removeprefix("gs://").split("/")[0])
        if not exists(bucket):
            raise UserError(f"`{name}`: there is no bucket {bucket}")
        return
    existing = directory
    while not existing.exists() and not os.path.islink(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"`{name}` must be a directory, but {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
        raise UserError(f"`{name}` must be writable, but {existing} is {'read-only' if read_only else 'not'}")
    disk = os.statvfs(existing)
    if (free := disk.f_bavail * disk.f_frsize) < num_bytes:
        raise UserError(
            f"`{name}`: {directory} needs {_size(num_bytes)} for one checkpoint, only {_size(free)} are free"
        )


def make_directory(directory: epath.Path) -> None:
    """Creates a directory and its parents if missing. Does nothing in a bucket, which has no directories."""
    if not is_remote(directory):
        with errors_in_one_line(f"cannot create {directory}"):
            os.makedirs(directory, exist_ok=True)


def move_directory(source: epath.Path, target: epath.Path) -> None:
    """Moves a directory, replacing the target. In a bucket, its files are copied one by one.

    Raises:
      UserError: if it cannot be moved.
    """
    with errors_in_one_line(f"cannot move {source} to {target}"):
        if exists(target):
            target.rmtree()
        if not is_remote(source):
            make_directory(target.parent)
            source.rename(target)
            return
        _copy_directory(source, target)
        source.rmtree()


def _copy_directory(source: epath.Path, target: epath.Path) -> None:
    for path in source.iterdir():
        if path.is_dir():
            _copy_directory(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())


def exists(path: epath.Path) -> bool:
    """Returns whether a file or directory exists; unlike `path.exists()`, raises if the bucket cannot be reached."""
    if not is_remote(path):
        return path.exists()
    with errors_in_one_line(f"cannot read {path}"):
        try:
            path.stat()
        except FileNotFoundError:
            return False
        return True


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file atomically: readers see the old content or the new, even after a crash.

    Raises:
      UserError: if it cannot be written, for example because the disk is full. The old content is kept.
    """
    with errors_in_one_line(f"cannot write {path}"):
        if is_remote(path):  # objects appear once their upload is complete
            path.write_bytes(content)
            return
        partial = f"{os.fspath(path)}.partial"
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a value atomically, as indented JSON; see `write_bytes` and `to_json`."""
    write_text(path, to_json(value, indent=2) + "\n")


def append_line(path: epath.Path, line: str) -> None:
    """Appends a line to a text file. On a local disk, a crash may leave a partial line.

    Raises:
      UserError: if it cannot be written.
    """
    if is_remote(path):  # objects cannot be appended to
        write_text(path, (read_text(path) if exists(path) else "") + line + "\n")
        return
    with errors_in_one_line(f"cannot write {path}"), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_bytes(path: epath.Path) -> bytes:
    """Returns the content of a file.

    Raises:
      UserError: if it cannot be read.
    """
    with errors_in_one_line(f"cannot read {path}"):
        return path.read_bytes()


def read_text(path: epath.Path) -> str:
    """Returns the content of a UTF-8 text file; invalid bytes are replaced.

    Raises:
      UserError: if it cannot be read.
    """
    return read_bytes(path).decode(errors="replace")


def read_json(path: epath.Path) -> Any:
    """Returns the value that a JSON file contains.

    Raises:
      UserError: if it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns a value as strict JSON: NaN and infinities become null, numpy scalars become numbers.

    Examples:
      >>> to_json({"loss": float("nan"), "widths": (4, 8)})
      '{"loss": null, "widths": [4, 8]}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def one_line(error: BaseException) -> str:
    """Returns the message of an exception as one line, its type if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # from TensorStore, which repeats the path three times
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def errors_in_one_line(failure: str) -> Iterator[None]:
    """Turns any error of a file system into a `UserError`.

    Disks raise OSError, but gcsfs, google-auth, aiohttp, Orbax and TensorStore raise any type, even bare Exception.

    Args:
      failure: The failed operation, with the path: "cannot write /runs/x/config.json".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{failure}: {one_line(error)}") from error


def drop_background_errors() -> None:
    """Drops the log records of Orbax, asyncio and gcsfs about failures, hundreds of lines that repeat their exceptions.

    Call this where `errors_in_one_line` handles the exceptions.
    """
    for name in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(name).addFilter(_is_unrelated_to_failures)  # idempotent


def _is_unrelated_to_failures(record: logging.LogRecord) -> bool:
    if record.name == "absl":
        return not ("/orbax/" in record.pathname and record.exc_info)
    if record.name == "asyncio":
        return "exception was never retrieved" not in str(record.msg)
    return "out of retries" not in str(record.msg)


def _require_gcs(name: str, path: str) -> None:
    missing = []
    for module, package in _GCS_PACKAGES.items():
        try:
            installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # its parent is missing
            installed = False
        if not installed:
            missing.append(package)
    if missing:
        raise UserError(f"`{name}`: '{path}' needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0:  # a NumPy or JAX scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"

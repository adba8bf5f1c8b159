"""One process with eight devices and two real processes with four each do the same."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lfcc_jax import models
from lfcc_jax.digest import digests

WORKER = """
import json, sys
import jax
import numpy as np

process, count, port, data_dir, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
jax.config.update("jax_num_cpu_devices", 8 // count)
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, process)

from lfcc_jax import data
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.sharding import batch_sharding, create_mesh, to_global

strong = {"padding": 1, "flip": True, "randaugment": "rand-m9-mstd0.5-inc1", "erasing": 0.5}
strong |= {"mixup": 0.8, "cutmix": 1.0}
block = {"name": "digits", "train_split": "train[:64]", "test_split": "test[:20]", "data_dir": data_dir}
mesh = create_mesh()
splits = data.open_splits(**block, augmentation=strong)
augment = jax.jit(splits.augmentation, out_shardings=batch_sharding(mesh))
batches = data.train_batches(splits.train, 16, seed=0)
found = {}
for step in range(3):
    seen = augment(jax.random.fold_in(jax.random.key(0), step), to_global(next(batches), mesh))
    for name, value in seen.items():
        for shard in value.addressable_shards:
            found[f"{step}/{name}/{shard.index[0].start}"] = np.asarray(shard.data)
np.savez(f"{out}/{process}_of_{count}.npz", **found)

config = {
    "data": block | {"augmentation": strong},
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    """Runs the worker in one process, and in two; returns the directory of what they wrote."""
    out = tmp_path_factory.mktemp("processes")
    (out / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    for count in (1, 2):
        started = [
            subprocess.Popen(
                [sys.executable, out / "worker.py", *map(str, (process, count, port, data_dir, out))],
                env=environment | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for process in range(count)
        ]
        for process in started:
            text = process.communicate(timeout=300)[0]
            assert process.returncode == 0, text
    return out


def test_two_processes_see_the_pixels_labels_and_order_of_one(runs):
    alone = dict(np.load(runs / "0_of_1.npz"))
    shares = [dict(np.load(runs / f"{process}_of_2.npz")) for process in (0, 1)]
    assert not shares[0].keys() & shares[1].keys()
    together = shares[0] | shares[1]
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(together[name], value, err_msg=name)
    steps = [np.concatenate([alone[f"{step}/image/{start}"] for start in range(0, 16, 2)]) for step in (0, 1)]
    assert np.abs(steps[0] - steps[1]).max() > 0.1  # another step is another batch


@pytest.mark.parametrize("other", ["run_of_2", "resident_run_of_2"])
def test_two_processes_learn_what_one_learns(runs, other):
    rows = [
        [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run_of_1", other)
    ]
    for alone, together in zip(*rows, strict=True):
        for key in alone.keys() - {"train/images_per_second"}:
            np.testing.assert_allclose(together[key], alone[key], rtol=1e-4, atol=1e-6, err_msg=key)


def test_a_network_saved_by_two_processes_has_the_digests_of_its_arrays(runs):
    network, variables = models.load(runs / "run_of_2")
    description = models.describe(runs / "run_of_2")
    assert description["digests"] == digests(variables)
    assert len(description["digests"]) == len(jax.tree.leaves(network.variable_shapes()))

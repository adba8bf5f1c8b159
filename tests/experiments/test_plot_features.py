import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.plot.features import alignments, energy_kept, means_of_equal_stages
from lfcc_jax.train import train_and_evaluate


def test_energy_kept_is_1_for_smooth_maps_and_0_for_checkered_maps():
    rng = np.random.default_rng(0)
    strength = jnp.asarray(rng.normal(size=(64, 1, 1, 3)), jnp.float32)
    flat = jnp.broadcast_to(strength, (64, 8, 8, 3))
    assert energy_kept(flat, "box") == pytest.approx({"1": 1, "2": 1, "4": 1}, abs=1e-5)
    checkered = flat * (1 - 2 * (np.indices((8, 8)).sum(0) % 2))[None, :, :, None]
    assert energy_kept(checkered, "box") == pytest.approx({"1": 0, "2": 0, "4": 0}, abs=1e-5)
    halves = flat * jnp.where(jnp.arange(8) < 4, 1.0, -1.0)[None, :, None, None]
    assert energy_kept(halves, "box") == pytest.approx({"1": 0, "2": 1, "4": 1}, abs=1e-5)
    # The mean over images does not count.
    assert energy_kept(halves + 100 * checkered[:1], "box") == pytest.approx({"1": 0, "2": 1, "4": 1}, abs=1e-3)


def test_alignments_are_high_only_in_the_shared_bands():
    rng = np.random.default_rng(0)
    waves = np.cos(np.pi / 8 * np.outer(np.arange(8), np.arange(8) + 0.5))  # DCT-II: [half waves, point]
    shared = rng.normal(size=(300, 2, 2, 4))

    def random_maps():
        coefficients = rng.normal(size=(300, 8, 8, 4))
        coefficients[:, :2, :2] = shared
        return jnp.asarray(np.einsum("bklc,ki,lj->bijc", coefficients, waves, waves), jnp.float32)

    maps = {name: {"stage1": random_maps()} for name in ("a", "b")}
    found = alignments(maps)["a - b"]
    assert found["0"][0][0] > 0.99
    assert found["1"][0][0] > 0.99
    assert abs(found["2 to 3"][0][0]) < 0.1
    assert abs(found["4 to 7"][0][0]) < 0.1
    assert 0.05 < found["as they are"][0][0] < 0.9


def test_alignments_of_small_maps_have_no_high_band():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2, 2, 3)), jnp.float32)
    found = alignments({"a": {"stage1": x}, "b": {"stage1": 2 * x}})["a - b"]
    assert found["1"][0][0] == pytest.approx(1, abs=1e-4)
    assert found["2 to 3"] == [[None]]


def test_means_of_equal_stages_are_over_stages_with_every_band():
    low, high = [[0.9, 0], [0, 0.1]], [[0.5, 0], [0, None]]
    missing = [[None, None], [None, None]]
    means = means_of_equal_stages({"0": low, "1": high, "2 to 3": missing})
    assert means == {"0": 0.9, "1": 0.5}  # the second stage has no "1"


def test_plot_features_of_two_trained_networks(tmp_path, tiny, teacher_dir, data_dir):
    train_and_evaluate(tiny(epochs=1), tmp_path / "student")
    options = [f"--data-dir={data_dir}", "--count=100", f"--out={tmp_path / 'out'}"]

    def plot(*workdirs):
        command = [sys.executable, "-m", "experiments.plot.features", *map(str, workdirs), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = plot(tmp_path / "student", teacher_dir)
    assert done.returncode == 0, done.stderr
    for name in ("spectra.png", "energy.png", "cka.png", "bands.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    ((pair, cka),) = json.loads((tmp_path / "out" / "features.json").read_text())["cka"].items()
    assert pair == "resnet_pico - vit_pico"
    assert pair in done.stdout
    assert np.shape(cka["0"]) == (4, 4)

    for workdirs, message in (([tmp_path / "student"], "two runs or more"), ([teacher_dir, tmp_path / "none"], "none")):
        rejected = plot(*workdirs)
        assert rejected.returncode == 1
        assert rejected.stderr.splitlines()[-1].startswith("error: ")
        assert message in rejected.stderr

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.plot_features import alignments, energy_kept
from lfcc_jax.train import train_and_evaluate


def test_energy_is_kept_by_what_varies_slowly_and_lost_by_what_does_not():
    rng = np.random.default_rng(0)
    strength = jnp.asarray(rng.normal(size=(64, 1, 1, 3)), jnp.float32)
    flat = jnp.broadcast_to(strength, (64, 8, 8, 3))
    assert energy_kept(flat, "box") == pytest.approx({"1": 1, "2": 1, "4": 1}, abs=1e-5)
    checkered = flat * (1 - 2 * (np.indices((8, 8)).sum(0) % 2))[None, :, :, None]
    assert energy_kept(checkered, "box") == pytest.approx({"1": 0, "2": 0, "4": 0}, abs=1e-5)
    halves = flat * jnp.where(jnp.arange(8) < 4, 1.0, -1.0)[None, :, None, None]
    assert energy_kept(halves, "box") == pytest.approx({"1": 0, "2": 1, "4": 1}, abs=1e-5)
    # What all images share says nothing about any of them.
    assert energy_kept(halves + 100 * checkered[:1], "box") == pytest.approx({"1": 0, "2": 1, "4": 1}, abs=1e-3)


def test_maps_that_share_low_frequencies_alone_are_alike_after_the_filter():
    rng = np.random.default_rng(0)
    shared = np.kron(rng.normal(size=(200, 2, 2, 4)), np.ones((1, 4, 4, 1)))

    def noise():
        x = rng.normal(size=(200, 8, 8, 4))
        return 3 * (x - x.reshape(200, 2, 4, 2, 4, 4).mean((2, 4)).repeat(4, 1).repeat(4, 2))

    maps = {name: {"stage1": jnp.asarray(shared + noise(), jnp.float32)} for name in ("a", "b")}
    found = alignments(maps, "box")["a - b"]
    assert found["grid 2"][0][0] > 0.99
    assert found["as they are"][0][0] < 0.6


def test_pictures_of_two_trained_networks(tmp_path, tiny, teacher_dir, data_dir):
    train_and_evaluate(tiny(epochs=1), tmp_path / "student")
    command = [sys.executable, "-m", "experiments.plot_features", str(tmp_path / "student"), str(teacher_dir)]
    command += [f"--data_dir={data_dir}", "--count=100", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"student - {teacher_dir.name}" in done.stdout
    for name in ("spectra.png", "energy.png", "cka.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "out" / "features.json").read_text())
    assert np.shape(found["cka"][f"student - {teacher_dir.name}"]["grid 1"]) == (4, 4)

    wrong = subprocess.run([*command, str(tmp_path / "nothing")], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")

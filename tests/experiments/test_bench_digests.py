import numpy as np
import pytest

from experiments.bench import digests


@pytest.mark.parametrize("flips", [digests.flips_in_checkpoints, digests.flips_in_networks])
def test_bit_flips_are_detected_or_have_no_effect(tmp_path, flips, monkeypatch):
    monkeypatch.setitem(digests.SMALL, "overrides", {"widths": (4, 4, 8, 8)})
    counts = flips(tmp_path, 16, np.random.default_rng(1))
    outcomes = {outcome for _, outcome in counts}
    assert outcomes <= {"detected by its digest", "detected by Orbax", "no effect"}
    assert len(outcomes) > 1


def test_bit_flips_are_missed_without_digests(tmp_path, monkeypatch):
    monkeypatch.setitem(digests.SMALL, "overrides", {"widths": (4, 4, 8, 8)})
    monkeypatch.setattr("lfcc_jax.training.checkpoint.changes", lambda recorded, found: [])
    rng = np.random.default_rng(0)
    # Orbax names its files at random, so the bits differ from run to run. One flip of 14 is missed.
    rounds = (digests.flips_in_checkpoints(tmp_path / str(i), 10, rng) for i in range(16))
    assert any(outcome == "MISSED" for counts in rounds for _, outcome in counts)

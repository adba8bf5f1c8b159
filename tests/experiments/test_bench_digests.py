import numpy as np
import pytest

from experiments.bench import digests


@pytest.mark.parametrize("flips", [digests.flips_in_checkpoints, digests.flips_in_networks])
def test_flipped_bits_are_found_or_change_nothing(tmp_path, flips, monkeypatch):
    monkeypatch.setitem(digests.SMALL, "overrides", {"widths": (4, 4, 8, 8)})
    found = flips(tmp_path, 16, np.random.default_rng(1))
    outcomes = {outcome for _, outcome in found}
    assert outcomes <= {"found by its digest", "found by Orbax", "nothing changed"}
    assert len(outcomes) > 1


def test_flips_that_nothing_finds_are_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(digests.SMALL, "overrides", {"widths": (4, 4, 8, 8)})
    monkeypatch.setattr("lfcc_jax.training.checkpoint.changes", lambda recorded, found: [])
    found = digests.flips_in_checkpoints(tmp_path, 12, np.random.default_rng(0))
    assert any(outcome == "NOT FOUND" for _, outcome in found)

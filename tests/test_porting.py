"""The recipes of experiments/porting have at most 46 lines, run, and their loss falls."""

import importlib.util
import pathlib

import pytest

RECIPES = pathlib.Path(__file__).parent.parent / "experiments" / "porting"


@pytest.mark.parametrize(
    ("recipe", "needs"), [("bare", "jax"), ("linen", "flax.linen"), ("nnx", "flax.nnx"), ("equinox_", "equinox")]
)
def test_loss_falls_in_a_training_loop_of(recipe, needs):
    pytest.importorskip(needs)
    path = RECIPES / f"{recipe}.py"
    assert len(path.read_text().splitlines()) <= 46
    spec = importlib.util.spec_from_file_location(f"porting_{recipe}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses = module.main()
    # Before training, the loss of sixteen images is slightly above chance, log(16).
    assert 2.7 < losses[0] < 3.5
    assert losses[-1] < losses[0] - 0.1

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "flax",
    "optax",
    "orbax",
    "clu",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "ml_collections",
    "grain",
    "absl",
)


CONFIGS = sorted(f"configs.{path.stem}" for path in (Path(__file__).parents[1] / "configs").glob("*.py"))


def imported_by(*modules):
    """Returns the names of all modules that are loaded after importing `modules`."""
    code = f"import sys, {', '.join(modules)}; print(' '.join(sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_lfcc_jax_imports_no_framework():
    assert not set(HEAVY) & set(imported_by("lfcc_jax"))


def test_control_imported_by_finds_a_framework():
    assert "flax" in imported_by("lfcc_jax.models")


@pytest.mark.parametrize("module", ["lfcc_jax.train", "lfcc_jax.main", "lfcc_jax.data"])
def test_trainer_and_data_do_not_import_torch(module):
    assert "torch" not in imported_by(module)


@pytest.mark.parametrize(
    "modules", [CONFIGS, ["lfcc_jax.convert", "lfcc_jax.convert.__main__"]], ids=["configs", "convert"]
)
def test_configs_and_convert_do_not_import_the_trainer(modules):
    loaded = imported_by(*modules)
    assert set(modules) <= set(loaded)
    assert not [name for name in loaded if name == "lfcc_jax.train" or name.startswith("lfcc_jax.training")]


def test_control_imported_by_finds_the_trainer():
    assert "lfcc_jax.training" in imported_by("lfcc_jax.training.schedules")

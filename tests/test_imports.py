import subprocess
import sys

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


def imported_by(statement):
    code = f"import sys; {statement}; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_lfcc_jax_brings_in_no_framework():
    assert not set(HEAVY) & set(imported_by("import lfcc_jax"))


def test_the_check_above_would_see_a_framework():
    assert "flax" in imported_by("import lfcc_jax.models")


@pytest.mark.parametrize("module", ["lfcc_jax.train", "lfcc_jax.main", "lfcc_jax.data"])
def test_torch_is_never_needed(module):
    assert "torch" not in imported_by(f"import {module}")

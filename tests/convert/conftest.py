"""Golden values from timm, and the import path of its networks, which need torch."""

import sys
from pathlib import Path

import numpy as np
import pytest

GOLDENS = Path(__file__).parent.parent / "goldens"
sys.path.append(str(GOLDENS))


@pytest.fixture(scope="session")
def resized():
    """Position embeddings and bias tables as timm resized them."""
    return np.load(GOLDENS / "timm_resized.npz")

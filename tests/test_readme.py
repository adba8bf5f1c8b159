"""What the README and the docstrings point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    *(path for ext in ("py", "sh") for d in ("configs", "experiments") for path in (ROOT / d).glob(f"*.{ext}")),
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(path):
    text = path.read_text()
    linked = set(re.findall(r"\]\((?!http)([^)#]+)\)", text))
    named = set(re.findall(r"(?<!\.\./)\b(?:configs|experiments|lfcc_jax|docs)/[\w/]+\.(?:py|md|png|sh|ipynb)\b", text))
    missing = [name for name in linked if not (path.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
    assert not re.findall(r"\b[A-Z]+_TABLE\b", text)

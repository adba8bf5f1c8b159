"""The README's Python runs, its links lead somewhere, and the repository's address is the same everywhere."""

import re
import tomllib
from pathlib import Path

import pytest

from lfcc_jax.training.config import read_config

ROOT = Path(__file__).parents[1]
TEXTS = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    *(path for ext in ("py", "sh") for d in ("configs", "experiments") for path in (ROOT / d).glob(f"*.{ext}")),
]


def test_python_blocks_of_the_readme_run_in_order():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    namespace, losses = {}, []
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
        losses.append(namespace["loss"])
    assert losses[0].shape == (8,)
    assert float(losses[0].mean()) == pytest.approx(2.079, abs=1e-3)  # as the first block says
    assert losses[1].shape == ()
    assert read_config(namespace["get_config"]()).losses["lfcc"] == {"weight": 1.0}
    info = namespace["model"].feature_info()["stage3"]
    assert (info.height, info.width, info.channels) == (8, 8, 96)
    assert namespace["features"]["stage3"].shape == (2, 8, 8, 96)
    assert namespace["FeatureMSE"]().stage == "stage4"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(path):
    text = path.read_text()
    linked = set(re.findall(r"\]\((?!http|#)([^)#]+)\)", text))
    named = set(re.findall(r"(?<!\.\./)\b(?:configs|experiments|lfcc_jax|docs)/[\w/]+\.(?:py|md|png|sh|ipynb)\b", text))
    missing = [name for name in linked if not (path.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
    assert not re.findall(r"\b[A-Z]+_TABLE\b", text)


def test_every_address_of_the_repository_is_that_of_pyproject():
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    path = repository.removeprefix("https://github.com/")
    for name in ("README.md", "experiments/lfcc_colab.ipynb"):
        text = (ROOT / name).read_text()
        addresses = re.findall(r"(?:git\+|git clone )(https://[^\"'\s\\]+)", text)
        assert set(addresses) == {repository}
        assert set(re.findall(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/", text)) <= {path}


def test_a_work_directory_means_one_run_in_the_readme():
    commands = re.findall(r"--config=(\S+)[^`]*?--workdir=(\S+)", (ROOT / "README.md").read_text().replace("\\\n", ""))
    trained = {}
    for config, workdir in commands:
        assert trained.setdefault(workdir, config) == config
    made = set(trained) | set(re.findall(r"--out[ =](\S+)", (ROOT / "README.md").read_text()))
    read = set(re.findall(r"checkpoint=(\S+)", (ROOT / "README.md").read_text()))
    assert read <= made

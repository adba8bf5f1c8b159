"""The tutorial and the command line run from the built wheel alone."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbclient
import nbformat
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "lfcc_colab.ipynb"
OWN_IMAGES = ROOT / "experiments" / "own_images_colab.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory with the unpacked wheel, as an installation has it."""
    directory, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "lfcc_jax", source / "lfcc_jax")  # building leaves files behind
    for pattern in ("pyproject.toml", "README.md", "LICENSE", "requirements*.txt"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={directory}", str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(directory)
    return directory


def test_notebook_runs_with_the_installed_package_alone(tmp_path, monkeypatch, site):
    monkeypatch.setenv("PYTHONPATH", str(site))
    notebook = nbformat.read(NOTEBOOK, 4)
    settings = next(cell for cell in notebook.cells if "EPOCHS = 60" in cell.source)
    settings.source = settings.source.replace("EPOCHS = 60", "EPOCHS = 2")
    notebook.cells.append(nbformat.v4.new_code_cell("print('package', lfcc_jax.__file__)"))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert f"package {site}" in printed[-1]
    assert sum("agrees with the teacher on" in text for text in printed) == 1
    assert sum("CKA" in text for text in printed) >= 1
    figures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in output.data for output in figures) == 3


def test_notebook_of_own_images_ends_with_an_onnx_file_that_runs(tmp_path, monkeypatch, site):
    monkeypatch.setenv("PYTHONPATH", str(site))
    notebook = nbformat.read(OWN_IMAGES, 4)
    settings = next(cell for cell in notebook.cells if "EPOCHS = 6" in cell.source)
    settings.source = settings.source.replace("EPOCHS = 6", "EPOCHS = 1")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "320 images in runs/own_images/images" in printed
    assert "no labels" in printed
    assert "differs from the network by at most" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


@pytest.mark.parametrize(("path", "extras"), [(NOTEBOOK, {"train"}), (OWN_IMAGES, {"train", "export"})])
def test_notebooks_install_the_package_from_the_repository(path, extras):
    (line,) = [line for cell in nbformat.read(path, 4).cells for line in cell.source.splitlines() if "%pip" in line]
    requirement = Requirement(line.split('"')[1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert requirement.name == project["name"]
    assert requirement.extras == extras
    assert requirement.url == f"git+{project['urls']['Repository']}"


def test_installed_command_has_a_default_config(tmp_path, site):
    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "lfcc_jax.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    helped = run("--help")
    assert helped.returncode == 0
    assert str(site / "lfcc_jax" / "default_config.py") in helped.stdout
    done = run("--workdir=run", "--config=:method=kd")
    assert done.returncode == 1
    assert "config.teacher.checkpoint: missing, and config.losses.kd needs a teacher" in done.stderr

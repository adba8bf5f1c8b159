"""The tutorial runs from top to bottom, in a fresh kernel."""

from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "lfcc_colab.ipynb"


def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, 4)
    settings = next(cell for cell in notebook.cells if "EPOCHS = 60" in cell.source)
    settings.source = settings.source.replace("EPOCHS = 60", "EPOCHS = 2")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert sum("agrees with the teacher on" in text for text in said) == 1
    assert sum("CKA" in text for text in said) >= 1
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in output.data for output in shown) == 3

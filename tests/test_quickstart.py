"""The notebook runs from its first cell to its last, as a newcomer would run it."""

import os
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
SECONDS = 120


def test_the_quickstart_runs(tmp_path, monkeypatch):
    """In a folder without `make demo`, so that it makes its own model."""
    root = str(NOTEBOOK.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [
        output["data"]["image/png"]
        for cell in code
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
    last = code[-1].outputs[0]["data"]["text/plain"]
    assert "sample_1.nii.gz 1.00" in last
    assert np.isfinite([cell.execution_count for cell in code]).all()

"""The notebook runs, in its short form, as Colab would run it: cell after cell, in a folder of its own."""

import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/quickstart.ipynb"


@pytest.mark.slow  # a third short quickstart: the command's and the script's are run each time
def test_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient (extra `dev`)")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (extra `dev`)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (extra `dev`)")
    pytest.importorskip("skimage", reason="needs the extra `demo`")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    (switch,) = (cell for cell in notebook.cells if cell.source == "SHORT = False")
    switch.source = "SHORT = True"
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    text = "".join(output.get("text", "") for output in outputs)
    assert "H-GKD, 60 % hidden" in text
    assert text.count("is most like") == 5

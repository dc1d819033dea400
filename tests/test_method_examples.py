"""The examples of single methods run, at toy size, and leave stock students."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForImageClassification

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["rob", "manifold", "msdcrd", "kd"]
# One process runs all four: starting costs more than running.
DRIVER = """
import runpy, sys
examples, folder, *names = sys.argv[1:]
sys.path.insert(0, examples)
for name in names:
    sys.argv[1:] = [f"--output_dir={folder}/{name}", "--steps=1"]
    runpy.run_path(f"{examples}/{name}.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("examples")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", DRIVER, str(EXAMPLES), str(folder), *NAMES]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("top-1") == 4 + 2 + 5
    return folder


def test_students_are_stock_checkpoints(finished):
    assert AutoModel.from_pretrained(finished / "rob" / "student").config.model_type == "resnet"
    for folder, kind in (("manifold/student", "vit"), ("msdcrd/student", "resnet"), ("kd/student/hint", "resnet")):
        model, info = AutoModelForImageClassification.from_pretrained(finished / folder, output_loading_info=True)
        assert model.config.model_type == kind
        assert model.config.id2label[7] == "7"
        assert not info["missing_keys"]

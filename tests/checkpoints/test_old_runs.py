"""Runs and students of earlier versions load: `old_runs` was written by the code of commit 8d80dc8.

It holds the data, a patch teacher and a classifier, and for H-GKD and logit distillation a finished run of six steps
without the checkpoint of its last one. Recreate nothing here: what these files are is the point.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from hgkd_hf import HGKDForPreTraining, KDForImageClassification, SparseUNetBackbone, SparseUNetModel
from hgkd_hf.cli import distill, publish
from hgkd_hf.hub import StudentCard

OLD_RUNS = Path(__file__).parent / "old_runs"


@pytest.fixture
def old_runs(tmp_path, monkeypatch):
    """A copy of the folder, from within which the runs were started."""
    shutil.copytree(OLD_RUNS, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "old"


def same_weights(model, file):
    stored = load_file(file)
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name.removeprefix("sparse_unet.")]), name


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("hgkd/student", AutoModel),
        ("kd/student", AutoModelForImageClassification),
        ("hgkd/student/sparse_unet", AutoModel),
        ("hgkd/student/sparse_unet", SparseUNetModel),
        ("hgkd/student/sparse_unet", SparseUNetBackbone),
        ("hgkd", HGKDForPreTraining),
        ("hgkd/checkpoint-3", HGKDForPreTraining),
        ("kd", KDForImageClassification),
        ("kd/checkpoint-3", KDForImageClassification),
    ],
)
def test_loads(folder, kind):
    folder = OLD_RUNS / folder
    model, loading = kind.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    same_weights(model, folder / "model.safetensors")
    assert AutoImageProcessor.from_pretrained(folder).image_mean == pytest.approx([0.485, 0.456, 0.406])
    pixels = torch.rand(2, 3, 32, 32)
    if hasattr(model, "image_features"):
        assert model.eval().image_features(pixels).shape == (2, 8)


@pytest.mark.parametrize("method", ["hgkd", "kd"])
def test_goes_on(old_runs, method):
    """From step 3 to 6 as then, but for the rounding of another machine or version of torch.

    Without oneDNN, which (3.12, on processors without AVX-512) writes beyond its buffer in the weight gradient of a
    1x1 convolution of stride 2 with fewer than 8 channels, as these runs' student has.
    """
    run = old_runs / method
    wanted = load_file(run / "model.safetensors")
    before = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recipe = run / "recipe.yaml"  # evaluated on its training images, which is refused today
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(True) if "knn" not in line))
    with torch.backends.mkldnn.flags(enabled=False):
        distill.main(["--recipe", f"{method}/recipe.yaml", "--resume"])
    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [[entry["loss"] for entry in entries if "loss" in entry] for entries in (before, after)]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    found = load_file(run / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["hgkd", "kd"])
def test_is_published(old_runs, method, capsys):
    publish.main([str(old_runs / method), "--repo_id", "alice/old", "--dry_run", "--license", "mit"])
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert StudentCard.load(old_runs / method / "student" / "card.json").method == method
    assert 'from_pretrained("alice/old")' in said

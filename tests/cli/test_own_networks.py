"""Students that a function of this machine builds: named on the command line, and nowhere else."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from hgkd_hf.cli.distill import main as distill
from hgkd_hf.cli.evaluate import main as evaluate
from hgkd_hf.hub.recipe import checked_recipe

NETWORK = """
from torch import nn

def build(width=8):
    def block(before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
    return nn.Sequential(*(block(*widths) for widths in ((3, width), (width, width), (width, width), (width, width))))
"""
PATH = "own_network_of_a_test:build"


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """Images, a teacher, a network of the user's, and nothing that is allowed yet."""
    (tmp_path / "own_network_of_a_test.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("hgkd_hf.students.code._allowed", {})
    for index in range(8):
        path = tmp_path / "images" / ("train" if index < 6 else "test") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (30 * index, 100, 200)).save(path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=8), add_pooling_layer=False).save_pretrained(
        tmp_path / "vit"
    )
    ViTImageProcessorPil().save_pretrained(tmp_path / "vit")
    return tmp_path


def flags(world: Path, *more: str) -> list[str]:
    settings = {"teacher": world / "vit", "dataset": world / "images", "output_dir": world / "run", "image_size": 64}
    settings |= {"decoder_width": 32, "max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none"}
    return [*(f"--{name}={value}" for name, value in settings.items()), *more]


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_distilled_exported_evaluated(world, mask_ratio, monkeypatch):
    distill(flags(world, f"--student={PATH}", f"--mask_ratio={mask_ratio}"))
    student = world / "run" / "student"
    weights = load_file(student / "model.safetensors")
    assert {"0.0.weight", "3.1.running_mean"} <= weights.keys()  # the network's own names
    import own_network_of_a_test

    own_network_of_a_test.build().load_state_dict(weights)
    readme = (student / "README.md").read_text()
    assert "whose classes the package `hgkd_hf` brings" in readme
    snippet = readme.split("```python\n")[1].split("```")[0]
    assert "hgkd_hf" not in snippet
    scope = {}
    monkeypatch.chdir(student)
    exec(snippet, scope)
    assert torch.equal(scope["network"][0][0].weight, weights["0.0.weight"])
    monkeypatch.setattr("hgkd_hf.students.code._allowed", {})
    command = [f"--model={student}", f"--dataset={world / 'images'}", f"--output_dir={world / 'evaluation'}"]
    command += ["--image_size=64", "--knn_k=3", "--protocols=knn"]
    with pytest.raises(ValueError, match=f"is built by '{PATH}', which is code: .*--allow_code {PATH}"):
        evaluate(command)
    assert 0 <= evaluate([*command, "--allow_code", PATH])["knn_accuracy"] <= 1


def test_a_recipe_names_no_code(world):
    """What was written by a run of one's own too: it may have come from elsewhere."""
    recipe = world / "recipe.yaml"
    for student in (f"student: {PATH}", f"student: {{model_type: module_backbone, factory: '{PATH}'}}"):
        recipe.write_text(student)
        with pytest.raises(ValueError, match="which is code"):
            distill(flags(world, f"--recipe={recipe}", "--dry_run"))
    recipe.write_text(f"allow_code: ['{PATH}']")
    with pytest.raises(ValueError, match="has the key 'allow_code', which no setting reads"):
        distill(flags(world, f"--recipe={recipe}", "--dry_run"))
    recipe.write_text(f"student: {PATH}")
    distill(flags(world, f"--recipe={recipe}", f"--allow_code={PATH}", "--dry_run"))


def test_a_recipe_from_the_hub_names_no_code(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: hgkd\nstudent: {PATH}\n")
    taken, left_out = checked_recipe(path)
    assert "student" not in taken
    assert "is not a Hub id" in left_out["student"]


def test_arguments_and_layers_as_json(world):
    config = {"model_type": "module_backbone", "factory": PATH, "arguments": {"width": 16}, "layers": ["1", "2", "3"]}
    distill(flags(world, f"--student={json.dumps(config)}", "--allow_code", PATH))
    assert load_file(world / "run/student/model.safetensors")["0.0.weight"].shape == torch.Size([16, 3, 3, 3])
    saved = json.loads((world / "run/student/config.json").read_text())
    assert (saved["layers"], saved["arguments"]) == (["1", "2", "3"], {"width": 16})


@pytest.mark.parametrize(("path", "message"), [("no_such:net", "No module named"), ("os.path", "is no import path")])
def test_wrong_paths_are_told_before_anything_is_loaded(world, path, message):
    with pytest.raises(ValueError, match=message):
        distill(flags(world, "--student=resnet-18", f"--allow_code={path}"))

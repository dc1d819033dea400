"""The folder of a fine-tuned model is ready to publish: its card says what it is, and its snippet runs."""

import json

import pytest
import yaml
from finetune_flags import flags
from huggingface_hub import ModelCard

from hgkd_hf.cli.finetune import main as finetune
from hgkd_hf.cli.publish import main as publish
from hgkd_hf.hub import StudentCard

TASKS = {
    "image-classification": ("image-classification", "top1_accuracy", "label"),
    "semantic-segmentation": ("image-segmentation", "mean_iou", "found"),
    "object-detection": ("object-detection", "ap", "found"),
}


@pytest.fixture(scope="module", params=TASKS)
def run(request, rectangles, student_folder, tmp_path_factory):
    """A finished run of each task, from a student that says what it is under."""
    folder = tmp_path_factory.mktemp("run")
    (student_folder / "README.md").write_text("---\nlicense: mit\n---\n")
    finetune(flags(rectangles, student_folder, folder, request.param, eval_split="test"))
    return request.param, folder


def test_card(run, student_folder):
    task, folder = run
    pipeline, metric, _ = TASKS[task]
    card = StudentCard.load(folder / "model" / "card.json")
    assert (card.method, card.task, card.num_classes, card.own_code) == ("fine-tuning", task, 2, None)
    assert metric in card.results["this student"]
    assert card.protocol[metric] == "on 6 images of test"
    assert card.start.name == student_folder.name
    readme = ModelCard.load(folder / "model" / "README.md")
    data = readme.data.to_dict()
    assert data["pipeline_tag"] == pipeline
    assert "distilled" not in data["tags"]
    assert data["model-index"][0]["results"][0]["task"]["type"] == pipeline
    assert "trained by fine-tuning on the images of" in readme.text
    assert "hgkd finetune --task" in readme.text
    recipe = yaml.safe_load((folder / "model" / "recipe.yaml").read_text())
    assert recipe["task"] == task
    assert not {"output_dir", "push_to_hub", "resume", "allow_remote_images"} & recipe.keys()


def test_snippet_runs(run):
    task, folder = run
    text = (folder / "model" / "README.md").read_text().replace("path/to/this/folder", str(folder / "model"))
    scope = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    assert TASKS[task][2] in scope


def test_publish_finds_it(run, monkeypatch, capsys):
    _, folder = run
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="choose a licence with --license"):
        publish([str(folder), "--repo_id", "alice/model", "--dry_run"])
    publish([str(folder), "--repo_id", "alice/model", "--dry_run", "--license", "mit"])
    shown = capsys.readouterr().out
    assert shown.startswith("to alice/model")
    assert "model.safetensors" in shown
    assert json.loads((folder / "model" / "card.json").read_text())["student"] in shown


def test_a_model_with_classes_of_this_package_says_so(rectangles, student_folder, tmp_path):
    finetune(flags(rectangles, student_folder / "sparse_unet", tmp_path, "semantic-segmentation", eval_split=None))
    text = (tmp_path / "model" / "README.md").read_text()
    assert "whose classes the package `hgkd_hf` brings" in text
    assert "import hgkd_hf" in text.split("```python\n")[1].split("```")[0]

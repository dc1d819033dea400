"""training/distill.py --dry_run, and the word `auto` from the command line to the recipe of the run."""

import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import ViTConfig, ViTModel

SCRIPT = Path(__file__).parents[2] / "training" / "distill.py"
STUDENT = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
STUDENT["layer_type"] = "basic"


@pytest.fixture(scope="module")
def distill():
    """The script's `main` in this process."""
    spec = importlib.util.spec_from_file_location("distill", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """24 images and a ViT."""
    folder = tmp_path_factory.mktemp("inputs")
    for index in range(24):
        path = folder / "images" / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (10 * index, 100, 200)).save(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=8), add_pooling_layer=False).save_pretrained(folder / "vit")
    return folder


def flags(inputs: Path, output: Path, *words: str, **settings) -> list[str]:
    settings = {
        "dataset": inputs / "images",
        "teacher": inputs / "vit",
        "student": json.dumps(STUDENT),
        "decoder_width": 32,
        "image_size": 64,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "disable_tqdm": True,
        "report_to": "none",
        "output_dir": output,
        **settings,
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), *words]


def test_dry_run_tells_all_and_writes_nothing(distill, inputs, tmp_path, capsys):
    run = tmp_path / "run"
    said = distill(flags(inputs, run, "--dry_run", gradient_accumulation_steps=2))
    shown = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    recipe, _, plan = shown.partition("\n\n")
    settings = yaml.safe_load(recipe)
    assert settings["output_dir"] == str(run)
    assert (settings["teacher"], settings["per_device_train_batch_size"]) == (str(inputs / "vit"), 4)
    assert "dry_run" not in settings
    for text in ("ResNetModel", "; heads ", "24 images", "8 images a step", "9, 3 epochs, 72 images"):
        assert text in plan
    assert "activations" in plan
    assert "images (an estimate)" in plan
    assert re.search(r"about \S+ images a second on 1 process\(es\), bound by reading, collating and the step", plan)
    size = statistics.median(path.stat().st_size for path in inputs.rglob("*.png"))
    assert f"{size / 1e3:.3g} kB an image, {size * 24 / 1e6:.3g} MB a pass" in plan
    assert (said["steps"], said["memory"] > 10**6) == (9, True)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"teacher": "/nowhere/vit"}, "/nowhere/vit"),
        ({"dataset": "/nowhere/images"}, "/nowhere/images"),
        ({"knn_split": "validation"}, "validation"),
        ({"per_device_train_batch_size": 32}, "24 samples, but a step takes 32"),
        ({"image_size": 60}, "image_size 60 is not a multiple"),
        ({"teacher_layers": 9}, "9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_dry_run_finds_what_a_run_would_find(settings, match, distill, inputs, tmp_path):
    with pytest.raises((ValueError, OSError), match=match):
        distill(flags(inputs, tmp_path / "run", "--dry_run", **settings))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "kd", "objective": "labels"}, "teacher: none: Labels alone needs none"),
        ({"feature_weight": 0, "pixel_weight": 1, "decoder": "full"}, "teacher: none: SparK needs none"),
        ({"method": "manifold", "alpha": 0, "beta": 0}, "teacher: none: Manifold distillation needs none"),
    ],
    ids=["labels", "spark", "manifold"],
)
def test_a_teacher_that_is_not_needed_is_left_aside(settings, said, distill, inputs, tmp_path, capsys):
    """It stands in the recipe that the baseline shares with the method: its files are not even looked for."""
    shared = {"teacher": inputs / "nowhere", "teacher_layers": 9}
    words = flags(inputs, tmp_path / "run", "--dry_run", **shared | settings)
    words = [word for word in words if "method" not in settings or not word.startswith("--decoder_width")]
    assert distill(words)["steps"] == 18
    assert said in capsys.readouterr().out


def test_dry_run_of_a_stream(distill, inputs, tmp_path, capsys):
    settings = {"streaming": True, "per_device_train_batch_size": "auto", "dataloader_num_workers": 2}
    assert distill(flags(inputs, tmp_path / "run", "--dry_run", **settings, max_steps=5))["steps"] == 5
    assert "steps: 5, 1,280 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="say how long to train with --max_steps"):
        distill(flags(inputs, tmp_path / "run", "--dry_run", **settings))
    assert not list(tmp_path.iterdir())


def test_dry_run_leaves_a_run_that_is_there_alone(distill, inputs, tmp_path):
    run = tmp_path / "run"
    distill(flags(inputs, run, max_steps=2, save_strategy="steps", save_steps=2))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds checkpoint-2: add --resume"):
        distill(flags(inputs, run, "--dry_run"))
    with pytest.raises(ValueError, match="image_size was 64, now 128"):
        distill(flags(inputs, run, "--dry_run", "--resume", image_size=128))
    assert distill(flags(inputs, run, "--dry_run", "--resume", max_steps=4, allow_changes="max_steps"))["steps"] == 4
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_auto_is_settled_once(distill, inputs, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    auto = {"per_device_train_batch_size": "auto", "dataloader_num_workers": "auto", "precision": "auto"}
    monkeypatch.setattr("hgkd_hf.training.arguments.has_native_bf16", lambda use_cpu: False)
    monkeypatch.setattr("hgkd_hf.training.arguments.available_cores", lambda: 1)
    distill(flags(inputs, run, **auto, max_steps=2, save_strategy="steps", save_steps=2))
    shown = capsys.readouterr().out
    assert "auto: per_device_train_batch_size 16, dataloader_num_workers 1, precision float32" in shown
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert [written[name] for name in auto] == [16, 1, "float32"]
    assert json.loads((run / "identity.json").read_text())["images_per_step"] == 16

    # Less memory and another processor: the run keeps what it began with.
    monkeypatch.setattr("hgkd_hf.training.arguments.free_memory", lambda device: 10**6)
    monkeypatch.setattr("hgkd_hf.training.arguments.has_native_bf16", lambda use_cpu: True)
    longer = {"max_steps": 3, "allow_changes": "max_steps"}
    assert distill(flags(inputs, run, "--resume", **auto, **longer))["steps"] == 3
    again = yaml.safe_load((run / "recipe.yaml").read_text())
    assert [again[name] for name in auto] == [16, 1, "float32"]

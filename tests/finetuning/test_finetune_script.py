"""training/finetune.py as users run it, and its models in transformers' own pipelines."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Image, load_dataset
from finetune_flags import TASKS, flags
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from hgkd_hf.cli.choices import parse_task
from hgkd_hf.finetuning.trainer import FineTuningArguments, FineTuningTrainer

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "training" / "finetune.py"
RECIPES = sorted((REPOSITORY / "src" / "hgkd_hf" / "recipes").rglob("finetune*.yaml"))


@pytest.fixture(scope="module")
def finetune():
    """The script's `main` in this process."""
    spec = importlib.util.spec_from_file_location("finetune", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def launch(arguments: list[str], *launcher: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


@pytest.fixture
def photo(rectangles):
    return load_dataset(str(rectangles), split="test")[0]["image"]


def test_classifier(rectangles, student_folder, photo, tmp_path):
    """With all that the field adds: mixing, smoothing, layer-wise rates, averaged weights, evaluation on the way."""
    extras = {"layer_decay": 0.7, "ema_decay": 0.9, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    extras |= {"save_strategy": "steps"}
    arguments = flags(rectangles, student_folder, tmp_path, "image-classification", **extras)
    result = launch(arguments, "-m", "accelerate.commands.launch", "--cpu")
    assert result.returncode == 0, result.stderr[-3000:]
    assert not list(tmp_path.rglob("*.bin"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 4
    assert 0 <= summary["metrics"]["top1_accuracy"] <= 1
    settings = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert (settings["layer_decay"], settings["cutmix"]) == (0.7, 1.0)
    model, loading = AutoModelForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.config.id2label == {0: "red", 1: "green"}
    # The kept weights are the average, not the last step's.
    last = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert not torch.equal(last.classifier[1].weight, model.classifier[1].weight)
    answers = pipeline("image-classification", str(tmp_path / "model"))(photo)
    assert {answer["label"] for answer in answers} == {"red", "green"}


@pytest.mark.parametrize("folder", ["", "sparse_unet"], ids=["upernet", "kept-decoder"])
def test_segmenter(finetune, rectangles, student_folder, photo, folder, tmp_path):
    summary = finetune(flags(rectangles, student_folder / folder, tmp_path, "semantic-segmentation"))
    assert set(summary["metrics"]) >= {"mean_iou", "iou_ground", "iou_thing"}
    model, loading = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    assert type(model).__name__ == (
        "SparseUNetForSemanticSegmentation" if folder else "UperNetForSemanticSegmentation"
    )
    segments = pipeline("image-segmentation", str(tmp_path / "model"))(photo)
    assert {segment["label"] for segment in segments} <= {"ground", "thing"}
    covered = sum(np.array(segment["mask"]).astype(bool).sum() for segment in segments)
    assert covered == 80 * 60  # each pixel of the picture in exactly one segment
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["description"]["model"].endswith(" parameters, trained weights of the encoder, layer decay 0.7")
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["layer_decay"] == 0.7


def test_detector(finetune, rectangles, student_folder, photo, tmp_path):
    summary = finetune(flags(rectangles, student_folder, tmp_path, "object-detection"))
    assert set(summary["metrics"]) >= {"ap", "ap50", "ap_red", "ap_green"}
    _, loading = AutoModelForObjectDetection.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    detections = pipeline("object-detection", str(tmp_path / "model"), threshold=0.0)(photo)
    assert len(detections) == 10
    assert {detection["label"] for detection in detections} <= {"red", "green"}
    assert all(-80 <= detection["box"]["xmin"] <= 160 for detection in detections)


def test_a_stopped_run_goes_on_to_the_same_weights(finetune, rectangles, student_folder, tmp_path):
    common = {"save_strategy": "steps", "save_steps": 2, "ema_decay": 0.9, "layer_decay": 0.7, "eval_split": None}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(flags(rectangles, student_folder, whole, "image-classification", **common))
    # The same run as it lay there after two steps.
    stopped.mkdir()
    (whole / "checkpoint-2").rename(stopped / "checkpoint-2")
    (stopped / "identity.json").write_text((whole / "identity.json").read_text())
    arguments = flags(rectangles, student_folder, stopped, "image-classification", **common)
    with pytest.raises(ValueError, match="holds checkpoint-2: add --resume to continue"):
        finetune(arguments)
    with pytest.raises(ValueError, match=r"other settings \(mixup was 0.2, now 0.4\)"):
        finetune([*arguments, "--resume", "--mixup=0.4"])
    finetune([*arguments, "--resume"])
    expected = AutoModelForImageClassification.from_pretrained(whole / "model").state_dict()
    resumed = AutoModelForImageClassification.from_pretrained(stopped / "model").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_two_processes_evaluate_every_image_once(rectangles, student_folder, tmp_path):
    """Five test images on two processes give the figure that one process gives for the same weights."""
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    common = {"max_steps": 1, "max_eval_samples": 5, "per_device_train_batch_size": 2}
    arguments = flags(rectangles, student_folder, tmp_path / "two", "image-classification", **common)
    two = launch(arguments, *launcher.split(), "--main_process_port", "0")
    assert two.returncode == 0, two.stderr[-3000:]
    arguments = flags(rectangles, tmp_path / "two" / "model", tmp_path / "one", "image-classification", **common)
    task, training = parse_task(arguments)
    trainer = FineTuningTrainer(task.build_model(), training, task, task.training_data(0), task.evaluation_data())
    assert len(trainer.predict_all(trainer.eval_dataset)) == 5
    both = json.loads((tmp_path / "two" / "summary.json").read_text())["metrics"]
    assert both["top1_accuracy"] == trainer.evaluate()["eval_top1_accuracy"]
    trainer.own_share = lambda dataset: [3, 0, 3]  # what fills a process up counts once
    assert len(trainer.predict_all(trainer.eval_dataset)) == 2


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (
            "image-classification",
            {"model": "no-such-folder"},
            "there is no student 'no-such-folder': `hgkd students` lists those that have a name",
        ),
        ("image-classification", {"model": "no/such/folder"}, "student 'no/such/folder' cannot be loaded: "),
        ("semantic-segmentation", {"class_names": None}, "name them with --class_names"),
        (
            "semantic-segmentation",
            {"ignore_index": 255},
            "16 of all 16 masks hold values of no class (5.0% of the pixels): 2",
        ),
        (
            "object-detection",
            {"target_column": "mask", "class_names": ["a", "b"]},
            "16 of all 16 rows cannot be used. The first: row 0: objects must be {'bbox': [...], 'category': [...]}",
        ),
        ("image-classification", {"layer_decay": 0}, "layer_decay is 0.0, but it must be above 0"),
        ("image-classification", {"eval_split": "validation"}, "has no split 'validation'"),
        ("image-classification", {"resume": True}, "--resume: there is no checkpoint in"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(finetune, task, settings, message, rectangles, student_folder, tmp_path):
    model = settings.get("model", student_folder)
    settings = {name: value for name, value in settings.items() if name != "model"}
    with pytest.raises(ValueError, match=re.escape(message)):
        finetune(flags(rectangles, model, tmp_path, task, **settings))


def test_an_error_of_the_command_is_one_line(rectangles, student_folder, tmp_path):
    result = launch(flags(rectangles, student_folder, tmp_path, "image-classification", eval_split="validation"))
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_by_their_task(path):
    values = yaml.safe_load(path.read_text())
    cpu = ["--bf16", "false", "--dataset", "images", "--model", "resnet-18"]
    task, training = parse_task(["--recipe", str(path), *cpu])
    assert task.task == values["task"]
    assert task.image_size == values["image_size"]
    assert isinstance(training, FineTuningArguments)


@pytest.mark.parametrize("task", TASKS)
def test_auto(finetune, task, rectangles, student_folder, tmp_path, monkeypatch):
    """The batch size that memory and data allow is found for the samples of every task, and kept in the recipe."""
    monkeypatch.setattr("hgkd_hf.training.arguments.has_native_bf16", lambda use_cpu: False)
    auto = {"per_device_train_batch_size": "auto", "precision": "auto", "max_steps": 1, "eval_split": None}
    finetune(flags(rectangles, student_folder, tmp_path, task, **auto))
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    images = load_dataset(str(rectangles), split="train").num_rows
    assert images / 2 < written["per_device_train_batch_size"] <= images
    assert written["precision"] == "float32"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "steps", "figure", "least"),
    [("image-classification", 60, "top1_accuracy", 1.0), ("semantic-segmentation", 100, "mean_iou", 0.8)],
)
def test_it_learns(finetune, task, steps, figure, least, rectangles, student_folder, tmp_path):
    """Coloured rectangles on noise are learned, and found in pictures that were not trained on."""
    extras = {"mixup": 0, "cutmix": 0} if task == "image-classification" else {"scale_range": [0.8, 1.25]}
    settings = {"max_steps": steps, "learning_rate": 1e-3, "per_device_train_batch_size": 8} | extras
    metrics = finetune(flags(rectangles, student_folder, tmp_path, task, **settings))["metrics"]
    assert metrics[figure] >= least


@pytest.mark.parametrize("column", ["mask", "objects"])
def test_annotations_that_were_replaced_are_noticed_at_resume(finetune, rectangles, student_folder, tmp_path, column):
    data = tmp_path / "data"
    shutil.copytree(rectangles, data)
    task = {"mask": "semantic-segmentation", "objects": "object-detection"}[column]
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "eval_split": None}
    arguments = flags(data, student_folder, tmp_path / "run", task, **settings)
    finetune(arguments)
    rows = load_dataset(str(rectangles), split="train").cast_column("mask", Image(decode=False))
    moved = list(rows[column])
    moved = moved[1:] + moved[:1]
    rows = rows.remove_columns(column).add_column(column, moved, feature=rows.features[column])
    rows.select_columns(["image", "label", "mask", "objects"]).to_parquet(data / "train.parquet")
    with pytest.raises(ValueError, match="was started with other settings .*targets was"):
        finetune([*arguments, "--resume"])


def test_rows_without_a_mask_are_counted_in_the_summary(finetune, rectangles, student_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(rectangles, data)
    rows = load_dataset(str(rectangles), split="train").cast_column("mask", Image(decode=False))
    masks = [None if index == 3 else mask for index, mask in enumerate(rows["mask"])]
    rows = rows.remove_columns("mask").add_column("mask", masks, feature=rows.features["mask"])
    rows.to_parquet(data / "train.parquet")
    summary = finetune(flags(data, student_folder, tmp_path / "run", "semantic-segmentation", eval_split=None))
    assert (summary["images"], summary["images_skipped"]) == (15, 1)
    assert (tmp_path / "run/skipped.tsv").read_text() == "3\t-\trow 3 has no mask.\n"

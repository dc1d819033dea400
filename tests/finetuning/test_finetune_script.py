"""training/finetune.py as users run it, and its models in transformers' own pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from hgkd_hf.finetuning import FineTuningArguments, parse_task

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "training" / "finetune.py"
RECIPES = sorted((REPOSITORY / "training" / "recipes").rglob("finetune*.yaml"))
TASKS = {
    "image-classification": {"image_size": 64, "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    "semantic-segmentation": {"image_size": [64, 96], "head_width": 16, "ignore_index": 2},
    "object-detection": {"image_size": [64, 96], "head_width": 32, "num_queries": 10, "decoder_layers": 1},
}
TASKS["semantic-segmentation"]["class_names"] = ["ground", "thing"]


def flags(dataset: Path, model: Path, output: Path, task: str, **settings) -> list[str]:
    settings = {
        "task": task,
        "dataset": dataset,
        "model": model,
        "image_column": "image",
        "eval_split": "test",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": output,
        **TASKS[task],
        **settings,
    }
    arguments = []
    for name, value in settings.items():
        if value is not None:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def launch(arguments: list[str], *launcher: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def finished(arguments: list[str], run: Path, *launcher: str) -> dict:
    result = launch(arguments, *launcher)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not list(run.rglob("*.bin"))
    return json.loads((run / "summary.json").read_text())


@pytest.fixture
def photo(rectangles):
    return load_dataset(str(rectangles), split="test")[0]["image"]


def test_classifier(rectangles, student_folder, photo, tmp_path):
    """With all that the field adds: mixing, smoothing, layer-wise rates, averaged weights, evaluation on the way."""
    extras = {"layer_decay": 0.7, "ema_decay": 0.9, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    extras |= {"save_strategy": "steps"}
    arguments = flags(rectangles, student_folder, tmp_path, "image-classification", **extras)
    summary = finished(arguments, tmp_path, "-m", "accelerate.commands.launch", "--cpu")
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
def test_segmenter(rectangles, student_folder, photo, folder, tmp_path):
    arguments = flags(rectangles, student_folder / folder, tmp_path, "semantic-segmentation")
    summary = finished(arguments, tmp_path)
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


def test_detector(rectangles, student_folder, photo, tmp_path):
    summary = finished(flags(rectangles, student_folder, tmp_path, "object-detection"), tmp_path)
    assert set(summary["metrics"]) >= {"ap", "ap50", "ap_red", "ap_green"}
    _, loading = AutoModelForObjectDetection.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    detections = pipeline("object-detection", str(tmp_path / "model"), threshold=0.0)(photo)
    assert len(detections) == 10
    assert {detection["label"] for detection in detections} <= {"red", "green"}
    assert all(-80 <= detection["box"]["xmin"] <= 160 for detection in detections)


def test_a_stopped_run_goes_on_to_the_same_weights(rectangles, student_folder, tmp_path):
    common = {"save_strategy": "steps", "save_steps": 2, "ema_decay": 0.9, "layer_decay": 0.7, "eval_split": None}
    arguments = flags(rectangles, student_folder, tmp_path / "whole", "image-classification", **common)
    finished(arguments, tmp_path / "whole")
    # The same run as it lay there after two steps.
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    stopped.mkdir()
    (whole / "checkpoint-2").rename(stopped / "checkpoint-2")
    arguments = flags(rectangles, student_folder, stopped, "image-classification", **common)
    refused = launch(arguments)
    assert f"error: {stopped} holds checkpoint-2: add --resume to go on" in refused.stderr
    finished([*arguments, "--resume"], stopped)
    expected = AutoModelForImageClassification.from_pretrained(whole / "model").state_dict()
    resumed = AutoModelForImageClassification.from_pretrained(stopped / "model").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_two_processes_evaluate_every_image_once(rectangles, student_folder, tmp_path):
    """Six test images on two processes, five on one and two: the counts agree with one process's."""
    common = {"max_steps": 1, "max_eval_samples": 5, "learning_rate": 0, "per_device_train_batch_size": 2}
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    kept = student_folder / "sparse_unet"
    two = flags(rectangles, kept, tmp_path / "two", "semantic-segmentation", **common)
    both = finished(two, tmp_path / "two", *launcher.split(), "--main_process_port", "0")
    common["per_device_train_batch_size"] = 4
    one = finished(flags(rectangles, kept, tmp_path / "one", "semantic-segmentation", **common), tmp_path / "one")
    assert both["metrics"] == pytest.approx(one["metrics"], abs=0.02)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("image-classification", {"model": "no-such-folder"}, "'no-such-folder' is neither a folder nor a Hub id"),
        ("image-classification", {"head_width": 3}, "head_width"),
        ("semantic-segmentation", {"class_names": None}, "name them with --class_names"),
        ("semantic-segmentation", {"ignore_index": 255}, "the mask holds class 2, but there are 2"),
        ("object-detection", {"target_column": "mask"}, "--target_column"),
        ("image-classification", {"layer_decay": 0}, "layer_decay is 0.0, but it must be above 0"),
        ("image-classification", {"eval_split": "validation"}, "has no split 'validation'"),
        ("image-classification", {"resume": True}, "--resume: there is no checkpoint in"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(task, settings, message, rectangles, student_folder, tmp_path):
    result = launch(flags(rectangles, settings.pop("model", student_folder), tmp_path, task, **settings))
    assert result.returncode != 0
    assert message in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_by_their_task(path):
    values = yaml.safe_load(path.read_text())
    cpu = ["--bf16", "false", "--dataset", "images", "--model", "resnet-18"]
    task, training = parse_task(["--recipe", str(path), *cpu])
    assert task.task == values["task"]
    assert task.image_size == values["image_size"]
    assert isinstance(training, FineTuningArguments)

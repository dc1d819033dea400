"""`hgkd predict` says of a folder's images what the task's pipeline says of each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from finetune_flags import flags
from PIL import Image
from transformers import pipeline

from hgkd_hf.cli.finetune import main as finetune
from hgkd_hf.cli.predict import main as predict
from hgkd_hf.deployment.predictions import NO_CLASS, class_colour, class_mask, drawn

PIPELINES = {
    "image-classification": "image-classification",
    "semantic-segmentation": "image-segmentation",
    "object-detection": "object-detection",
}


@pytest.fixture(scope="module", params=PIPELINES)
def model(request, rectangles, student_folder, tmp_path_factory) -> tuple[str, Path]:
    """A model of each task, and the task of its pipeline."""
    run = tmp_path_factory.mktemp("run")
    finetune(flags(rectangles, student_folder, run, request.param, eval_split=None, max_steps=1))
    return PIPELINES[request.param], run / "model"


@pytest.fixture(scope="module")
def photos(rectangles, tmp_path_factory) -> Path:
    """Three pictures of two sizes in folders, one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "b").mkdir()
    for name, row in zip(("a.png", "b/a.png", "c.jpg"), load_dataset(str(rectangles), split="test")):
        row["image"].resize((70, 50) if name == "a.png" else (80, 60)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_as_the_pipeline(model, photos, tmp_path, capsys):
    task, folder = model
    arguments = [f"--model={folder}", f"--dataset={photos}", f"--output_dir={tmp_path}", "--max_pictures=2"]
    path = predict([*arguments, "--batch_size=2", *(["--threshold=0"] if task == "object-detection" else [])])
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["row"], entry["file"]) for entry in entries] == [(0, "a.png"), (1, "b/a.png"), (3, "c.jpg")]
    predictor = pipeline(task, str(folder), **({"threshold": 0.0} if task == "object-detection" else {}))
    for entry in entries:
        expected = predictor(str(photos / entry["file"]))
        if task == "image-segmentation":
            mask = np.array(Image.open(tmp_path / entry["mask"]))
            labels = predictor.model.config.label2id
            for segment in expected:
                assert np.array_equal(mask == labels[segment["label"]], np.array(segment["mask"]) > 0)
                assert entry["share"][segment["label"]] == pytest.approx((np.array(segment["mask"]) > 0).mean())
            continue
        found = entry["labels" if task == "image-classification" else "objects"]
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)
        assert [one.get("box") for one in found] == [one.get("box") for one in expected]
    assert sorted(picture.name for picture in (tmp_path / "pictures").iterdir()) == ["000000.png", "000001.png"]
    assert "3 images; 1 could not be read" in capsys.readouterr().out


def test_a_model_whose_config_has_no_label2id(model, photos, tmp_path):
    _, folder = model
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "label2id": None}))
    given = [f"--dataset={photos}", "--max_pictures=1"]
    expected = predict([*given, f"--model={folder}", f"--output_dir={tmp_path / 'a'}"]).read_text()
    assert predict([*given, f"--model={tmp_path / 'model'}", f"--output_dir={tmp_path / 'b'}"]).read_text() == expected


def test_settings_of_another_task_are_refused(model, photos, tmp_path):
    task, folder = model
    wrong = "top_k" if task == "object-detection" else "threshold"
    with pytest.raises(ValueError, match=f"{wrong} is for .* but .* is for {task}: leave --{wrong} out"):
        predict([f"--model={folder}", f"--dataset={photos}", f"--output_dir={tmp_path}", f"--{wrong}=1"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--threshold=2", r"threshold is 2.0, but it must be at least 0 and at most 1"),
        ("--batch_size=0", "batch_size is 0, but it must be at least 1"),
        ("--max_pictures=-1", "max_pictures is -1, but it must be at least 0"),
        ("--top_k=1", "holds a ResNetModel, which predicts none of image-classification"),
    ],
)
def test_bad_input_is_one_sentence(flag, message, photos, student_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        predict([f"--model={student_folder}", f"--dataset={photos}", f"--output_dir={tmp_path}", flag])


def test_masks_and_pictures():
    segments = [{"label": name, "mask": Image.fromarray(rows)} for name, rows in zip("ab", halves())]
    mask = class_mask(segments, {"a": 3, "b": 0}, (4, 2))
    assert np.array(mask).tolist() == [[3, 3, 0, NO_CLASS]] * 2
    assert mask.convert("RGB").getpixel((0, 0)) == class_colour(3)
    photo = Image.new("RGB", (4, 2), "white")
    shown = drawn(photo, "image-segmentation", segments, {"a": 3, "b": 0})
    assert shown.getpixel((3, 0)) == (255, 255, 255)  # of no class
    assert shown.getpixel((0, 0)) != (255, 255, 255) != shown.getpixel((2, 0))
    box = {"score": 0.9, "label": "a", "box": {"xmin": 10, "ymin": 20, "xmax": 40, "ymax": 50}}
    shown = drawn(Image.new("RGB", (64, 64), "white"), "object-detection", [box], {"a": 3})
    assert shown.getpixel((10, 45)) == class_colour(3)
    assert shown.getpixel((60, 60)) == (255, 255, 255)


def halves() -> list[np.ndarray]:
    rows = np.zeros((2, 2, 4), np.uint8)
    rows[0, :, :2] = rows[1, :, 2:3] = 255
    return list(rows)


def test_colours_of_classes_differ():
    colours = torch.tensor([class_colour(number) for number in range(36)]).float()
    distances = torch.cdist(colours, colours) + 1000 * torch.eye(36)
    assert distances.min() > 25

"""Fine-tuning compares the classes of its splits, of --class_names and of a checkpoint by name."""

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from hgkd_hf.finetuning.classification import ImageClassification

COLOURS = {"cat": (250, 0, 0), "dog": (0, 0, 250), "cow": (0, 250, 0)}


@pytest.fixture(autouse=True)
def no_bars():
    datasets.disable_progress_bars()


def split(names, kind="classes", offset=0):
    """Three images of each class, whose colour tells the class."""
    rows = [(name, step) for name in names for step in range(3)]
    images = [
        Image.new("RGB", (48, 48), tuple(min(255, c + offset + step) for c in COLOURS[name])) for name, step in rows
    ]
    labels = [name if kind == "strings" else names.index(name) for name, _ in rows]
    feature = Value("string") if kind == "strings" else ClassLabel(names=list(names))
    return Dataset.from_dict(
        {"image": images, "label": labels}, features=Features(image=datasets.Image(), label=feature)
    )


def task(folder, train, test, **settings) -> ImageClassification:
    DatasetDict(train=train, test=test).save_to_disk(folder / "saved")
    return ImageClassification(
        dataset=str(folder / "saved"), **{"model": "resnet-10", "image_size": 48, "eval_split": "test"} | settings
    )


def named(data, names) -> set[tuple[str, str]]:
    """(colour by its name, name of the label) of all samples."""
    pairs = set()
    for sample in (data[i] for i in range(len(data))):
        red, green, blue = sample["pixel_values"].float().mean((1, 2)).tolist()
        colour = max((red, "cat"), (green, "cow"), (blue, "dog"))[1]
        label = sample["labels"]
        pairs.add((colour, names[int(label.argmax()) if isinstance(label, torch.Tensor) else label]))
    return pairs


@pytest.mark.parametrize("kind", ["classes", "strings"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["cat", "dog"], ["dog", "cat"]),
        (["cat", "cow", "dog"], ["dog", "cow"]),
        (["dog", "cat"], ["cow", "cat", "dog"]),
    ],
)
def test_splits_in_any_order(tmp_path, train, test, kind):
    fine = task(tmp_path, split(train, kind), split(test, kind, offset=3))
    assert set(fine.names) == set(train)
    for data, names in ((fine.training_data(0), train), (fine.evaluation_data(), test)):
        assert named(data, fine.names) == {(name, name) for name in names if name in train}


def test_splits_of_other_classes_are_refused(tmp_path):
    fine = task(tmp_path, split(["cat", "dog"]), split(["cow", "cat"]))
    with pytest.raises(
        ValueError, match="split 'test' of '.*' has the classes 'cow', 'cat', but split 'train' has 'ca"
    ):
        fine.evaluation_data()


@pytest.mark.parametrize("order", [["cat", "dog"], ["dog", "cat"]])
def test_class_names_are_found_by_name(tmp_path, order):
    fine = task(tmp_path, split(["cat", "dog"]), split(["dog", "cat"], offset=3), class_names=order)
    for data in (fine.training_data(0), fine.evaluation_data()):
        assert named(data, order) == {("cat", "cat"), ("dog", "dog")}
    with pytest.raises(ValueError, match="has the classes 'cat', 'dog', but --class_names has 'a', 'b'"):
        task(tmp_path / "other", split(["cat", "dog"]), split(["cat"]), class_names=["a", "b"]).training_data(0)


@pytest.mark.parametrize(
    ("feature", "labels", "match"),
    [
        (List(ClassLabel(names=["a", "b"])), [[0], [0, 1]], "several labels a row.* choose another --target_column"),
        (None, None, "has no labels: name their column with --target_column"),
        (ClassLabel(names=["a", "b"]), [None, None], "No row of split 'train'.*another --split or --target_column"),
        (Value("int64"), [0, 1], "does not name its classes: name them with --class_names"),
    ],
)
def test_labels_that_are_none_are_one_sentence(tmp_path, feature, labels, match):
    rows = {"image": [Image.new("RGB", (48, 48))] * 2} | ({} if feature is None else {"label": labels})
    features = Features({"image": datasets.Image()} | ({} if feature is None else {"label": feature}))
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    fine = ImageClassification(dataset=str(tmp_path / "saved"), model="resnet-10", image_size=48)
    with pytest.raises(ValueError, match=match):
        fine.training_data(0)


def test_a_checkpoints_head_keeps_its_classes(tmp_path):
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label={0: "dog", 1: "cat"}
    )
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    fine = task(
        tmp_path, split(["cat", "dog"]), split(["cat", "dog"], offset=3), model=str(tmp_path / "model"), image_size=48
    )
    assert fine.names == ("dog", "cat")
    assert fine.build_model().config.id2label == {0: "dog", 1: "cat"}
    assert named(fine.training_data(0), fine.names) == {("cat", "cat"), ("dog", "dog")}


def test_evaluating_on_training_images_is_said(tmp_path, caplog):
    fine = task(tmp_path, split(["cat", "dog"]), split(["cat", "dog"]))
    fine.evaluation_data()
    assert "6 of 6 images looked at of split 'test' are trained on" in caplog.text

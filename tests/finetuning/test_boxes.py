"""Every form of objects and format of boxes is read as it was meant, or refused in one sentence before training."""

import logging
import re

import numpy as np
import pytest
import torch
from annotated import photo, write
from datasets import ClassLabel, List, Value
from PIL import Image

from hgkd_hf.data.decode import CorruptImageError
from hgkd_hf.finetuning.boxes import BOX_FORMATS
from hgkd_hf.finetuning.detection import ObjectDetection

BOX = [10.0, 20.0, 40.0, 20.0]  # x, y, width, height in 64 x 48 pixels
NAMES = ClassLabel(names=["cell", "dot"])
BOXES = List(List(Value("float32")))
LISTS = {"bbox": BOXES, "category": List(NAMES)}


def detection(dataset, **settings) -> ObjectDetection:
    defaults = {"image_column": "image", "image_size": [64], "flip_probability": 0.0, "scale_range": [1.0, 1.0]}
    return ObjectDetection(str(dataset), "resnet-10", task="object-detection", **defaults | settings)


def one_each(boxes) -> list[dict]:
    """A row for each box."""
    return [{"bbox": [list(map(float, box))], "category": [0]} for box in boxes]


# What a row holds, its feature, the names given, and the classes of its rows; None: refused.
SHAPES = {
    "dict of lists": ([{"bbox": [BOX], "category": [1]}] * 2, LISTS, None, [[1], [1]]),
    "list of dicts": (
        [[{"bbox": BOX, "category": 1}], []],
        List({"bbox": List(Value("float32")), "category": NAMES}),
        None,
        [[1], []],
    ),
    "nothing annotated": ([{"bbox": [BOX], "category": [1]}, None], LISTS, None, [[1], []]),
    "empty lists": ([{"bbox": [BOX], "category": [1]}, {"bbox": [], "category": []}], LISTS, None, [[1], []]),
    "null lists": ([{"bbox": [BOX], "category": [1]}, {"bbox": None, "category": None}], LISTS, None, [[1], []]),
    "names": (
        [{"bbox": [BOX], "category": ["dot"]}, {"bbox": [BOX], "category": ["cell"]}],
        {"bbox": BOXES, "category": List(Value("string"))},
        None,
        [[1], [0]],
    ),
    "names in an order of one's own": (
        [{"bbox": [BOX], "category": ["dot"]}] * 2,
        {"bbox": BOXES, "category": List(Value("string"))},
        ["dot", "cell"],
        [[0], [0]],
    ),
    "names in a list of dicts": (
        [[{"bbox": BOX, "label": "dot"}], [{"bbox": BOX, "label": "cell"}]],
        List({"bbox": List(Value("float32")), "label": Value("string")}),
        None,
        [[1], [0]],
    ),
    "numbers": (
        [{"bbox": [BOX], "category": [1]}] * 2,
        {"bbox": BOXES, "category": List(Value("int64"))},
        ["cell", "dot"],
        [[1], [1]],
    ),
    "whole floats": (
        [{"bbox": [BOX], "category": [1.0]}] * 2,
        {"bbox": BOXES, "category": List(Value("float32"))},
        ["cell", "dot"],
        [[1], [1]],
    ),
    "COCO's keys, and more": (
        [{"id": [7], "area": [800.0], "bbox": [BOX], "category_id": [1]}] * 2,
        {"id": List(Value("int64")), "area": List(Value("float32")), "bbox": BOXES, "category_id": List(NAMES)},
        None,
        [[1], [1]],
    ),
    "boxes and labels": (
        [{"boxes": [BOX], "labels": [1]}] * 2,
        {"boxes": BOXES, "labels": List(NAMES)},
        None,
        [[1]] * 2,
    ),
    "bboxes and categories": (
        [{"bboxes": [BOX], "categories": [1]}] * 2,
        {"bboxes": BOXES, "categories": List(NAMES)},
        None,
        [[1], [1]],
    ),
    "one object without lists": (
        [{"bbox": BOX, "label": 1}] * 2,
        {"bbox": List(Value("float32")), "label": NAMES},
        None,
        [[1], [1]],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_annotations(shape, tmp_path):
    rows, feature, names, classes = SHAPES[shape]
    dataset = detection(write(tmp_path, "objects", feature, rows), class_names=names).training_data(0)
    for index, expected in enumerate(classes):
        labels = dataset[index]["labels"]
        assert labels["class_labels"].tolist() == expected
        centre_and_size = [[30 / 64, 30 / 48, 40 / 64, 20 / 48]] * len(expected)
        assert torch.allclose(labels["boxes"], torch.tensor(centre_and_size).view(-1, 4))


REFUSED_SHAPES = {
    "no categories": (
        [{"bbox": [BOX]}] * 2,
        {"bbox": BOXES},
        "2 of all 2 rows cannot be used. The first: row 0: objects must be {'bbox': [...], 'category': [...]} or a "
        "list of {'bbox': [...], 'category': ...}, but have the keys bbox (--target_column).",
    ),
    "boxes by their sides": (
        [[{"xmin": 1, "ymin": 2, "xmax": 9, "ymax": 9, "label": 0}]] * 2,
        List({"xmin": Value("int64"), "ymin": Value("int64"), "xmax": Value("int64"), "ymax": Value("int64"),
              "label": NAMES}),
        "row 0: objects must be {'bbox': [...], 'category': [...]} or a list of {'bbox': [...], 'category': ...}, but "
        "have the keys xmin, ymin, xmax, ymax, label (--target_column).",
    ),
    "polygons": (
        [{"bbox": [[1.0, 2.0, 9.0, 2.0, 9.0, 8.0, 1.0, 8.0]], "category": [0]}] * 2,
        LISTS,
        "row 0: a box must be four finite numbers (--box_format), but one is [1.0, 2.0, 9.0, 2.0, 9.0, 8.0, 1.0, 8.0]",
    ),
    "text": (['[{"bbox": [1, 2, 3, 4]}]'] * 2, Value("string"), "row 0: objects must be {'bbox': [...], 'category'"),
    "bare boxes": ([[BOX]] * 2, BOXES, "but are a list of list (--target_column)."),
    "lists of unequal length": (
        [{"bbox": [BOX], "category": [0, 1]}] * 2,
        LISTS,
        "row 0 has 1 boxes, but 2 categories.",
    ),
    "numbers from 1": (
        [{"bbox": [BOX], "category": [2]}] * 2,
        {"bbox": BOXES, "category": List(Value("int64"))},
        "row 0: the category 2 is none of the 2 classes 'cell', 'dot', whose numbers begin at 0 (--class_names).",
    ),
    "a category that is missing": (
        [{"bbox": [BOX], "category": [None]}] * 2,
        {"bbox": BOXES, "category": List(Value("int64"))},
        "row 0: the category None is none of the 2 classes",
    ),
    "several categories a box": (
        [{"bbox": [BOX], "category": [[0, 1]]}] * 2,
        {"bbox": BOXES, "category": List(List(NAMES))},
        "row 0: the category [0, 1] is none of the 2 classes",
    ),
    "boxes that are not finite": (
        one_each([[1, 2, float("nan"), 4]] * 2),
        LISTS,
        "row 0: a box must be four finite numbers (--box_format), but one is [1.0, 2.0, nan, 4.0].",
    ),
    "no object anywhere": ([None, None], LISTS, "no object is annotated in all 2 rows (--target_column, --split)."),
}  # fmt: skip


@pytest.mark.parametrize("shape", REFUSED_SHAPES)
def test_other_shapes_are_refused_before_training(shape, tmp_path):
    rows, feature, message = REFUSED_SHAPES[shape]
    task = detection(write(tmp_path, "objects", feature, rows), class_names=["cell", "dot"])
    with pytest.raises(ValueError, match=re.escape(f"split 'train' of '{tmp_path}': ")) as error:
        task.training_data(0)
    assert message in str(error.value)


def in_format(boxes: np.ndarray, box_format: str, width: int = 64, height: int = 48) -> np.ndarray:
    """Corners (N, 4) in pixels as a format stores them."""
    first, second = boxes[:, :2], boxes[:, 2:]
    order = box_format.removesuffix("-normalised")
    if order == "xywh":
        second = second - first
    elif order == "cxcywh":
        first, second = (first + second) / 2, second - first
    stored = np.concatenate([first, second], 1)
    return stored / [width, height, width, height] if box_format.endswith("normalised") else stored


def random_corners(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    size = random.uniform(6, 24, (count, 2))
    first = random.uniform(0, 1, (count, 2)) * ([64, 48] - size)
    return np.concatenate([first, first + size], 1)


@pytest.mark.parametrize("said", BOX_FORMATS)
@pytest.mark.parametrize("stored", BOX_FORMATS)
def test_formats_of_boxes(stored, said, tmp_path, caplog):
    """Read as meant when said rightly; said wrongly, never without a word that names the right format.

    Only centre and corner of the same unit may look alike, where no box comes near the edge that tells them apart.
    """
    corners = random_corners(60)
    rows = one_each(in_format(corners, stored))
    task = detection(write(tmp_path, "objects", LISTS, rows), box_format=said)
    with caplog.at_level(logging.WARNING):
        if stored == said:
            boxes = task.training_data(0)[7]["labels"]["boxes"]
            centre, size = (corners[7, :2] + corners[7, 2:]) / 2, corners[7, 2:] - corners[7, :2]
            np.testing.assert_allclose(boxes[0], np.concatenate([centre, size]) / [64, 48, 64, 48], atol=1e-5)
            assert not caplog.records
            return
        try:
            task.training_data(0)
        except ValueError as error:
            told = str(error)
        else:
            told = caplog.text
    assert f"do not fit their images as --box_format {said}: " in told
    assert stored in re.search(r"As --box_format (.*) they would fit\.", told)[1].split(" or ")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            [[0.08, 0.2, 0.31, 0.31], [0.5, 0.4, 0.39, 0.41]],
            "2 of 2 boxes (100.0%) of all 2 rows do not fit their images as --box_format xywh: 2 smaller than a pixel "
            "or negative, 0 reaching beyond the image. The first is [0.08, 0.2, 0.31, 0.31] of row 0, whose image has "
            "128x96 pixels. As --box_format xywh-normalised they would fit.",
        ),
        (
            [[10, 20, 50, 50], [60, 40, 110, 80], [100, 70, 128, 96]],
            "2 of 3 boxes (66.7%) of all 3 rows do not fit their images as --box_format xywh: 0 smaller than a pixel "
            "or negative, 2 reaching beyond the image. The first is [60.0, 40.0, 110.0, 80.0] of row 1, whose image "
            "has 128x96 pixels. As --box_format xyxy they would fit.",
        ),
        ([[300, 400, 200, 100]] * 3, "3 of 3 boxes (100.0%) of all 3 rows do not fit"),
        ([[5, 5, 0, 0]] * 3, "3 of 3 boxes (100.0%) of all 3 rows do not fit"),
    ],
    ids=["normalised", "corners", "outside", "without area"],
)
def test_boxes_that_cannot_be_what_was_said_are_refused(boxes, message, tmp_path):
    images = [photo(128, 96)] * len(boxes)
    task = detection(write(tmp_path, "objects", LISTS, one_each(boxes), images), eval_split="train")
    for data in (lambda: task.training_data(0), task.evaluation_data):
        with pytest.raises(ValueError, match=re.escape(message)):
            data()


def test_some_boxes_beyond_their_image_are_counted_and_clipped(tmp_path, caplog):
    boxes = [*[[5, 5, 20, 20]] * 46, [50, 5, 30, 20], [-9, 5, 20, 20], [5, 5, 0, 9], [70, 5, 9, 9]]
    dataset = detection(write(tmp_path, "objects", LISTS, one_each(boxes))).training_data(0)
    assert (
        "4 of 50 boxes (8.0%) of all 50 rows do not fit their images as --box_format xywh: 1 smaller than a pixel or "
        "negative, 3 reaching beyond the image." in caplog.text
    )
    assert [len(dataset[index]["labels"]["boxes"]) for index in (45, 46, 47, 48, 49)] == [1, 1, 1, 0, 0]


def test_boxes_are_looked_for_until_there_is_one(tmp_path):
    """Three hundred rows without an object, and one with: that one is not among the rows that are looked at first."""
    rows = [{"bbox": [], "category": []}] * 300
    rows[299] = {"bbox": [BOX], "category": [0]}
    images = [photo()] * 300
    assert len(detection(write(tmp_path, "objects", LISTS, rows, images)).training_data(0)) == 300


def test_rows_whose_objects_are_unusable_are_skipped_counted_and_named(tmp_path, caplog):
    rows = one_each([[5, 5, 20, 20]] * 10)
    rows[3] = {"bbox": [[5.0, 5.0, float("inf"), 5.0]], "category": [0]}
    rows[7] = {"bbox": [[5.0, 5.0, -4.0, 5.0]], "category": [0]}
    dataset = detection(write(tmp_path, "objects", LISTS, rows)).training_data(0, tmp_path / "skipped.tsv")
    assert [dataset[index]["sample_index"] for index in (3, 7)] == [4, 8]
    assert dataset.num_skipped == 2
    named = (tmp_path / "skipped.tsv").read_text()
    assert "row 3: a box must be four finite numbers (--box_format), but one is [5.0, 5.0, inf, 5.0]." in named
    assert "row 7: the box [5.0, 5.0, -4.0, 5.0] has a negative side as --box_format xywh." in named


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_images_that_exif_turns(orientation, tmp_path, caplog):
    """Boxes of the stored image reach beyond the upright one where sides are swapped; else only a warning can tell."""
    images = [photo(orientation=orientation)] * 8  # stored 64 x 48
    boxes = [[40, 10, 20, 20], [10, 10, 20, 20]] * 4
    task = detection(write(tmp_path, "objects", LISTS, one_each(boxes), images))
    if orientation >= 5:
        with pytest.raises(
            ValueError, match="the boxes of 4 rows, the first is row 0, fit their images only as these"
        ):
            task.training_data(0)
    else:
        task.training_data(0)
    warned = "8 of 8 images looked at are turned upright by their EXIF orientation: their boxes must be" in caplog.text
    assert warned == (1 < orientation < 5)


def test_classes_are_those_of_their_names_in_every_split(tmp_path):
    """Train counts cell, dot, and test dot, cell: what is a dot here must be one there."""
    swapped = {"bbox": BOXES, "category": List(ClassLabel(names=["dot", "cell"]))}
    other = write(tmp_path / "other", "objects", swapped, one_each([[5, 5, 20, 20]]), split="test")
    task = detection(write(tmp_path / "own", "objects", LISTS, one_each([[5, 5, 20, 20]])))
    assert task.names == ("cell", "dot")
    task.dataset, task.eval_split = str(other), "test"
    assert task.evaluation_data()[0]["labels"]["class_labels"].tolist() == [1]


@pytest.mark.parametrize("given", [["cell", "blob"], ["cell"]])
def test_classes_that_the_model_does_not_have_are_refused(given, tmp_path):
    task = detection(write(tmp_path, "objects", LISTS, one_each([[5, 5, 20, 20]])), class_names=given)
    with pytest.raises(ValueError, match=rf"has the classes 'cell', 'dot', .*model.* {str(given)[1:-1]}"):
        task.training_data(0)


def test_boxes_are_clipped_and_left_out():
    task = detection("-", class_names=["red", "green"])
    image = Image.new("RGB", (80, 60))
    objects = {"bbox": [[-10, 5, 20, 20], [70, 50, 30, 30], [90, 5, 5, 5], [3, 3, 0, 9]], "category": [0, 1, 0, 1]}
    boxes, classes = task.read_objects(objects, image, "row 0")
    assert boxes.tolist() == [[0, 5, 10, 25], [70, 50, 80, 60]]
    assert classes.tolist() == [0, 1]
    boxes, classes = task.read_objects({"bbox": [], "category": []}, image, "row 0")
    assert (boxes.shape, classes.shape) == ((0, 4), (0,))


@pytest.mark.parametrize("box", [[0, 0, -5, 5], [0, 0, float("nan"), 5], [0, 0, 5]])
def test_unfit_boxes_of_a_row_are_named(box):
    task = detection("-", class_names=["red", "green"])
    with pytest.raises(CorruptImageError, match=r"row 3: .*--box_format"):
        task.read_objects({"bbox": [box], "category": [0]}, Image.new("RGB", (80, 60)), "row 3")


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="box_format is 'yolo': choose one of xywh, xyxy, cxcywh, xywh-normalised, "):
        detection("-", box_format="yolo")


def test_rows_that_no_survey_saw_are_warned_about_but_not_for_ever(caplog):
    task = detection("-", class_names=["cell"])
    with caplog.at_level(logging.WARNING):
        for index in range(9):
            task.read_objects(one_each([[60, 40, 110, 80]])[0], Image.new("RGB", (128, 96)), f"row {index}")
    assert len(caplog.records) == 5
    assert "row 0: 1 of 1 boxes do not fit the image of 128x96 pixels as --box_format xywh, the first is [60.0" in (
        caplog.text
    )
    assert caplog.messages[-1].endswith("further rows are not named.")

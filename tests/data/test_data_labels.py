"""Labels as people have them are used, or one sentence says why not; classes of two sources are compared by name."""

import io
import logging

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image

from hgkd_hf.data import (
    DistillationDataset,
    EvaluationDataset,
    Flags,
    ImageTransform,
    StreamingDistillationDataset,
    align_classes,
    class_names,
    labelled,
    load_images,
    match_classes,
)

PLAIN = ImageTransform(8, train=False)
AB = ClassLabel(names=["a", "b"])


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, labels, feature, split="train", column="label"):
    rows = {"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))], column: labels}
    folder.mkdir(exist_ok=True)
    Dataset.from_dict(rows, features=Features({"image": datasets.Image(), column: feature})).to_parquet(
        folder / f"{split}-00000-of-00001.parquet"
    )
    return str(folder)


def used(source) -> list[int]:
    """The labels of all rows that have one, as a dataset gives them."""
    return [sample["labels"] for sample in EvaluationDataset(source, PLAIN)]


USED = {
    "classes": ([0, 1, 0], AB, ("a", "b"), [0, 1, 0]),
    "whole numbers": ([0, 2, 1], Value("int64"), ("0", "1", "2"), [0, 2, 1]),
    "small whole numbers": ([0, 2, 1], Value("uint8"), ("0", "1", "2"), [0, 2, 1]),
    "nulls among classes": ([0, None, 1], AB, ("a", "b"), [0, 1]),
    "nulls among numbers": ([0, 1, None], Value("int32"), ("0", "1"), [0, 1]),
    "strings": (["dog", "cat", "dog"], Value("string"), ("cat", "dog"), [1, 0, 1]),
    "strings and nulls": (["dog", None, "cat"], Value("string"), ("cat", "dog"), [1, 0]),
    "numbers as strings": (["10", "9", "10"], Value("large_string"), ("10", "9"), [0, 1, 0]),
    "truth values": ([True, False, None], Value("bool"), ("False", "True"), [1, 0]),
    "whole floats": ([0.0, 2.0, 1.0], Value("float64"), ("0", "1", "2"), [0, 2, 1]),
    "floats of pandas with a gap": ([0.0, float("nan"), 1.0], Value("float32"), ("0", "1"), [0, 1]),
}


@pytest.mark.parametrize("kind", USED)
def test_labels_that_can_be_used(tmp_path, caplog, kind):
    labels, feature, names, expected = USED[kind]
    source = load_images(write(tmp_path / "data", labels, feature))
    assert source.label_column == "label"
    assert class_names(source) == names
    assert used(source) == expected
    missing = len(labels) - len(expected)
    assert (f"{missing} of {len(labels)} rows of split 'train' of" in caplog.text) == (missing > 0)
    assert len(DistillationDataset(source, PLAIN, seed=0)) == len(labels), "without labels, every row is used"


REFUSED = {
    "none": ([None] * 3, AB, "No row of split 'train' of '.*' has a label in column 'label': choose another --split"),
    "minus one among classes": (
        [0, -1, 1],
        AB,
        "has the label -1, but its classes are 0 to 1: choose another --split",
    ),
    "minus one": ([1, -1, 1], Value("int64"), "has the label -1, but its classes are 0 to 1"),
    "floats": ([0.5, 1.0, 0.0], Value("float64"), "Column 'label' of '.*' holds 0.5, but labels are whole numbers or"),
    "infinite": ([0.0, float("inf"), 1.0], Value("float64"), "Column 'label' of '.*' holds inf, but labels are whole"),
    "ids": ([0, 10**12, 1], Value("int64"), "numbers up to 1000000000000, but only 3 different ones, like ids, not"),
    "several": ([[0], [0, 1], []], List(AB), "holds several labels a row, but one label a row is needed: choose an"),
    "structures": ([{"x": 1}] * 3, {"x": Value("int64")}, "one label a row is needed: choose another --label_column"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_cannot_be_used(tmp_path, kind):
    labels, feature, match = REFUSED[kind]
    source = load_images(write(tmp_path / "data", labels, feature))
    for use in (class_names, labelled, used, lambda source: align_classes(source, ("a", "b"), "the model")):
        with pytest.raises(ValueError, match=match) as caught:
            use(source)
        assert "\n" not in str(caught.value)
    assert len(DistillationDataset(source, PLAIN, seed=0)) == 3, "without labels, every row is used"


def test_a_wanted_column_that_holds_no_label_is_named_with_the_flag_of_the_script(tmp_path):
    folder = write(tmp_path / "data", [[0], [1]], List(AB), column="tags")
    flags = Flags(label_column="--target_column")
    with pytest.raises(
        ValueError, match=r"'tags' of '.*' holds several labels a row.*choose another --target_column\."
    ):
        load_images(folder, label_column="tags", flags=flags)
    with pytest.raises(ValueError, match="has no labels: name their column with --target_column"):
        labelled(load_images(folder, flags=flags))


@pytest.mark.parametrize("names", [["test", "train"], ["train"], ["Validation", "train"]])
def test_classes_that_are_splits_are_no_labels(tmp_path, names):
    """`datasets` makes them of a repository's folders train and test."""
    source = load_images(write(tmp_path / "data", [None, 0], ClassLabel(names=names)))
    assert (source.label_column, source.class_names) == (None, None)
    assert load_images(source.name, label_column="label").label_column == "label"


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        ([0, 1, 1], AB, [0, 1, 1]),
        ([0, None, 1], AB, [0, 1, 1]),  # a row without a label is replaced by the next
        ([True, False, True], Value("bool"), [1, 0, 1]),
        ([2.0, 1.0, 0.0], Value("float64"), [2, 1, 0]),
    ],
)
def test_labels_of_streams(tmp_path, labels, feature, expected):
    source = load_images(write(tmp_path / "data", labels, feature), streaming=True)
    stream = StreamingDistillationDataset(source, PLAIN, seed=0, return_labels=True)
    assert [sample["labels"] for sample in stream] == expected
    assert stream.num_skipped == labels.count(None)


@pytest.mark.parametrize(
    ("labels", "feature", "match"),
    [
        (["a", "b"], Value("string"), "the stream '.*' does not name its classes: drop --streaming"),
        ([0, -1], AB, "row 1 of '.*' has the label -1, which is not the number of a class: correct --label_column"),
        ([0, 0.5], Value("float64"), "has the label 0.5"),
    ],
)
def test_wrong_labels_of_streams(tmp_path, labels, feature, match):
    source = load_images(write(tmp_path / "data", labels, feature), streaming=True)
    with pytest.raises(ValueError, match=match):
        list(StreamingDistillationDataset(source, PLAIN, seed=0, return_labels=True))


def test_string_classes_do_not_depend_on_the_sample(tmp_path):
    folder = write(tmp_path / "data", ["c", "a", "b", "d"], Value("string"))
    source = load_images(folder, max_samples=2)
    assert source.class_names == ("a", "b", "c", "d")
    reds = [row["image"]["path"] for row in source.dataset]
    assert used(source) == [{"0.png": 2, "1.png": 0, "2.png": 1, "3.png": 3}[name] for name in reds]


@pytest.mark.parametrize(
    ("given", "wanted", "numbers"),
    [
        (["cat", "dog"], ["cat", "dog"], [0, 1]),
        (["dog", "cat"], ["cat", "dog"], [1, 0]),
        (["dog"], ["bird", "cat", "dog"], [2]),
        (["dog", "bird", "cat"], ["cat", "dog"], [1, None, 0]),
        (["3", "5"], [str(i) for i in range(10)], [3, 5]),
        (["crane", "crane", "dog"], ["dog", "crane", "crane"], [1, 2, 0]),
        (["LABEL_0", "LABEL_1"], ["cat", "dog"], [0, 1]),
        (["cat", "dog"], ["0", "1"], [0, 1]),
        (["False", "True"], ["no", "yes"], [0, 1]),
    ],
)
def test_classes_are_matched_by_name(given, wanted, numbers):
    assert match_classes(given, wanted, "the data", "the model") == numbers


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["bus", "car"], ["cat", "dog"]),
        (["cat", "bird"], ["cat", "dog"]),
        (["Cat", "Dog"], ["cat", "dog"]),
    ],
)
def test_other_classes_are_refused_with_both_lists(given, wanted):
    with pytest.raises(
        ValueError, match="the data has the classes '.*', but the model has '.*': one's must be"
    ) as caught:
        match_classes(given, wanted, "the data", "the model")
    assert all(repr(name) in str(caught.value) for name in given + wanted)


def test_classes_without_names_must_be_as_many():
    nameless = ["LABEL_0", "LABEL_1", "LABEL_2"]
    for given, wanted in ((["cat", "dog"], nameless), (nameless, nameless[:2])):
        with pytest.raises(
            ValueError, match=f"the data has {len(given)} classes and the model {len(wanted)}, and not"
        ):
            match_classes(given, wanted, "the data", "the model")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_splits_with_classes_in_another_order(tmp_path, streaming, text):
    labels = ["dog", "cat", "cat"] if text else [0, 1, 1]
    feature = Value("string") if text else ClassLabel(names=["dog", "cat"])
    source = load_images(write(tmp_path / "data", labels, feature), streaming=streaming)
    if text and streaming:
        with pytest.raises(ValueError, match="does not name its classes"):
            align_classes(source, ("bird", "cat", "dog"), "the model")
        return
    aligned = align_classes(source, ("bird", "cat", "dog"), "the model")
    assert aligned.class_names == ("bird", "cat", "dog")
    assert [aligned.label(row) for row in aligned.dataset] == [2, 1, 1]


def test_rows_of_further_classes_are_left_out_and_counted(tmp_path, caplog):
    source = load_images(write(tmp_path / "data", [0, 1, 2, 0], ClassLabel(names=["dog", "cow", "cat"])))
    with caplog.at_level(logging.WARNING):
        aligned = align_classes(source, ("cat", "dog"), "the model")
    assert used(aligned) == [1, 0, 1]
    assert aligned.num_rows == 3
    assert "1 of 4 rows of split 'train' of" in caplog.text
    assert "are of classes that the model does not have, and are left out" in caplog.text
    other = load_images(write(tmp_path / "other", [1, 1], ClassLabel(names=["dog", "cow", "cat"])))
    with pytest.raises(
        ValueError, match="no row of split 'train' of '.*' is of a class of the model, which are 'cat'"
    ):
        align_classes(other, ("cat", "dog"), "the model")


def test_numbers_without_names_are_taken_as_they_are(tmp_path):
    source = load_images(write(tmp_path / "data", [0, 2, 1], Value("int64")))
    assert used(align_classes(source, ("a", "b", "c"), "the model")) == [0, 2, 1]
    with pytest.raises(ValueError, match="has labels up to 2, but the model has 2 classes, 'a', 'b'"):
        align_classes(source, ("a", "b"), "the model")


def test_aligned_samples_keep_their_images(tmp_path):
    source = load_images(write(tmp_path / "data", [0, None, 1], ClassLabel(names=["dog", "cat"])))
    aligned = align_classes(source, ("cat", "dog"), "the model")
    reds = [int(np.asarray(aligned.decode(row))[0, 0, 0]) for row in aligned.dataset]
    assert list(zip(reds, used(aligned))) == [(0, 1), (2, 0)]

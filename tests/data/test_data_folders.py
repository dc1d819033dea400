"""Every image of a local folder is a row, whatever its shape, or a sentence says why not."""

import io
import logging
import zipfile
from pathlib import Path, PureWindowsPath

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features
from PIL import Image

from hgkd_hf.data import decode_image, load_images
from hgkd_hf.data.folders import split_named


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def build(root: Path, *files: str) -> Path:
    """Files by their paths: images, whose red value is their number, and texts for what has another extension."""
    for number, name in enumerate(files):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpg"):
            file.write_bytes(png(number))
        else:
            file.write_text("0 0.5 0.5 0.2 0.2\n")
    return root


def zipped(archive: Path, *files: str) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for number, name in enumerate(files):
            file.writestr(name, png(number) if name.endswith(".png") else "x")
    return archive


def linked_folders(root: Path) -> Path:
    build(root / "store", "cat/0.png", "cat/1.png", "dog/0.png")
    (root / "set").mkdir()
    for name in ("cat", "dog"):
        (root / "set" / name).symlink_to(root / "store" / name)
    return root / "set"


def linked_files(root: Path) -> Path:
    build(root / "pool", "0.png", "1.png", "2.png")
    for number, name in enumerate(("cat", "cat", "dog")):
        (root / "set" / name).mkdir(parents=True, exist_ok=True)
        (root / "set" / name / f"{number}.png").symlink_to(root / "pool" / f"{number}.png")
    return root / "set"


def linked_to_itself(root: Path) -> Path:
    build(root, "cat/0.png", "cat/1.png", "dog/0.png")
    (root / "dog" / "up").symlink_to(root)
    return root


def with_empty_folder(root: Path) -> Path:
    build(root, "cat/0.png", "dog/0.png", "dog/1.png")
    (root / "bird").mkdir()
    return root


PETS = ("cat", "dog")
# folder -> {split: (rows, classes)}
SHAPES = {
    "flat": (lambda root: build(root, "a.png", "b.png"), {"train": (2, None)}),
    "class folders": (lambda root: build(root, "cat/0.png", "dog/0.png"), {"train": (2, PETS)}),
    "one class folder": (lambda root: build(root, "cat/0.png", "cat/1.png"), {"train": (2, None)}),
    "a class called train": (
        lambda root: build(root, *(f"{name}/{i}.png" for name in ("bus", "car", "train") for i in range(6))),
        {"train": (18, ("bus", "car", "train"))},
    ),
    "classes called test and val": (
        lambda root: build(root, "test/0.png", "val/0.png", "other/0.png"),
        {"train": (3, ("other", "test", "val"))},
    ),
    "classes with split words": (
        lambda root: build(root, "test tube/0.png", "model train/0.png"),
        {"train": (2, ("model train", "test tube"))},
    ),
    "files with split words": (
        lambda root: build(root, "a test tube.png", "train_1.png", "val.png", "horse.png"),
        {"train": (4, None)},
    ),
    "splits with classes": (
        lambda root: build(root, "train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "test/dog/0.png"),
        {"train": (2, PETS), "validation": (1, PETS), "test": (1, PETS)},
    ),
    "splits in capitals, with numbers": (
        lambda root: build(root, "Train2017/cat/0.png", "Train2017/dog/0.png", "Val_2017/dog/0.png"),
        {"train": (2, PETS), "validation": (1, PETS)},
    ),
    "splits called images": (
        lambda root: build(root, "train_images/0.png", "test-images/0.png", "test-images/1.png"),
        {"train": (1, None), "test": (2, None)},
    ),
    "splits without classes": (
        lambda root: build(root, "train/0.png", "train/1.png", "test/0.png"),
        {"train": (2, None), "test": (1, None)},
    ),
    "a split of unlabelled images": (
        lambda root: build(root, "train/cat/0.png", "train/dog/0.png", "test/0.png", "test/1.png"),
        {"train": (2, PETS), "test": (2, None)},
    ),
    "a class called train within splits": (
        lambda root: build(root, "train/bus/0.png", "train/train/0.png", "test/train/0.png"),
        {"train": (2, ("bus", "train")), "test": (1, ("bus", "train"))},
    ),
    "splits in one word": (
        lambda root: build(root, "trainset/cat/0.png", "trainset/dog/0.png", "testset/dog/0.png"),
        {"train": (2, PETS), "test": (1, PETS)},
    ),
    "splits with a name": (
        lambda root: build(
            root, "seg_train/seg_train/cat/0.png", "seg_train/seg_train/dog/0.png", "seg_test/cat/0.png"
        ),
        {"train": (2, PETS), "test": (1, PETS)},
    ),
    "one split": (lambda root: build(root, "test/cat/0.png", "test/dog/0.png"), {"test": (2, PETS)}),
    "wrapped": (
        lambda root: build(root, "set/set/train/cat/0.png", "set/set/train/dog/0.png", "set/set/test/dog/0.png"),
        {"train": (2, PETS), "test": (1, PETS)},
    ),
    "splits wrapped twice": (
        lambda root: build(root, "training_set/training_set/cat/0.png", "training_set/training_set/dog/0.png"),
        {"train": (2, PETS)},
    ),
    "nested classes": (
        lambda root: build(root, "animals/cat/0.png", "animals/dog/0.png", "vehicles/bus/0.png"),
        {"train": (3, ("bus", "cat", "dog"))},
    ),
    "nested folders that are no classes": (
        lambda root: build(root, "cat/day/0.png", "cat/night/0.png", "dog/day/0.png"),
        {"train": (3, None)},
    ),
    "images beside class folders": (
        lambda root: build(root, "cat/0.png", "dog/0.png", "overview.png"),
        {"train": (3, None)},
    ),
    "unequal depths": (lambda root: build(root, "cat/0.png", "dog/0.png", "dog/more/1.png"), {"train": (3, None)}),
    **{
        f"sidecar {kind} files": (
            lambda root, kind=kind: build(root, "cat/0.jpg", f"cat/0{kind}", "dog/0.jpg", f"dog/0{kind}", f"x{kind}"),
            {"train": (2, PETS)},
        )
        for kind in (".txt", ".xml", ".json", ".csv", ".yaml")
    },
    "YOLO": (
        lambda root: build(root, "images/train/0.jpg", "images/val/0.jpg", "labels/train/0.txt", "labels/val/0.txt"),
        {"train": (1, None), "validation": (1, None)},
    ),
    "hidden and system files": (
        lambda root: build(
            root, "cat/0.png", "dog/0.png", ".DS_Store", "cat/._0.png", "dog/Thumbs.db", ".x/0.png", "__MACOSX/0.png"
        ),
        {"train": (2, PETS)},
    ),
    "extensions in capitals": (lambda root: build(root, "cat/0.PNG", "dog/0.JPG"), {"train": (2, PETS)}),
    "spaces, letters and brackets": (
        lambda root: build(root, "größe 1/a [1].png", "犬/b*.png", "a,b/'c'.png"),
        {"train": (3, ("a,b", "größe 1", "犬"))},
    ),
    "dunder class": (lambda root: build(root, "__none__/0.png", "cat/0.png"), {"train": (2, ("__none__", "cat"))}),
    "empty class folder": (with_empty_folder, {"train": (3, PETS)}),
    "links to folders": (linked_folders, {"train": (3, PETS)}),
    "links to files": (linked_files, {"train": (3, PETS)}),
    "a link to a folder above": (linked_to_itself, {"train": (3, PETS)}),
    "a zip of class folders": (
        lambda root: zipped(root / "photos.zip", "cat/0.png", "dog/0.png", "__MACOSX/cat/0.png"),
        {"train": (2, PETS)},
    ),
    "a zip of Windows": (
        lambda root: zipped(root / "photos.zip", "photos\\cat\\0.png", "photos\\dog\\0.png"),
        {"train": (2, PETS)},
    ),
    "a zip of a wrapped folder": (
        lambda root: zipped(root / "photos.zip", "photos/cat/0.png", "photos/dog/0.png"),
        {"train": (2, PETS)},
    ),
    "a folder with a zip": (
        lambda root: zipped(root / "photos.zip", "cat/0.png", "dog/0.png").parent,
        {"train": (2, PETS)},
    ),
    "a folder with a zip for each split": (
        lambda root: (
            (
                zipped(root / "train.zip", "cat/0.png", "dog/0.png"),
                zipped(root / "test.zip", "dog/0.png"),
            )[0].parent
        ),
        {"train": (2, PETS), "test": (1, PETS)},
    ),
    "a folder with its own zip": (
        lambda root: zipped(build(root, "cat/0.png", "dog/0.png") / "all.zip", "cat/0.png", "dog/0.png").parent,
        {"train": (2, PETS)},
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_folder_shapes(tmp_path, shape, streaming):
    make, splits = SHAPES[shape]
    folder = make(tmp_path / "images")
    for split, (rows, classes) in splits.items():
        source = load_images(folder, split=split, streaming=streaming)
        assert source.class_names == classes
        assert source.label_column == (None if classes is None else "label")
        read = list(source.dataset)
        assert len(read) == rows
        for row in read:
            assert source.decode(row).size == (6, 5)
            if classes:
                assert PureWindowsPath(row["image"]["path"]).parent.name == classes[source.label(row)]
    with pytest.raises(ValueError, match=f"has no split 'other': choose --split from {', '.join(map(repr, splits))}"):
        load_images(folder, split="other")


@pytest.mark.parametrize("name", ["images", "here/images", "../images", "."])
def test_a_folder_named_from_here(tmp_path, monkeypatch, name):
    place = tmp_path / "there"
    place.mkdir()
    folder = build(place / name, "cat/0.png", "dog/0.png")
    before = load_images(folder.resolve())
    monkeypatch.chdir(place)
    source = load_images(name)
    assert [source.decode(row).size for row in source.dataset] == [(6, 5)] * 2
    assert source.fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val2017", "validation"),
        ("dev-set", "validation"),
        ("test_images", "test"),
        ("evaluation", "test"),
        ("model train", None),
        ("test tube", None),
        ("trainer", None),
        ("images", None),
        ("2017", None),
        ("train_test", None),
        ("trainset", "train"),
        ("TestImages", "test"),
        ("valdata_2", "validation"),
        ("testimony", None),
        ("imagestrain", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_named(name) == split


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_names_the_rows(tmp_path, caplog, kind):
    folder = build(tmp_path / "images [1]", "0.png", "sub/1.png", "2.png")
    lines = {"file_name": ["sub/1.png", "0.png"], "label": ["dog", "cat"]}
    getattr(Dataset.from_dict(lines), {"csv": "to_csv", "jsonl": "to_json", "parquet": "to_parquet"}[kind])(
        folder / f"metadata.{kind}"
    )
    with caplog.at_level(logging.WARNING):
        source = load_images(folder)
    assert source.class_names == ("cat", "dog")
    assert [source.label(row) for row in source.dataset] == [1, 0]
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in source.dataset] == [1, 0]
    assert "the metadata names all but 1 of 3 images, which are not read, the first" in caplog.text


def test_metadata_of_splits(tmp_path):
    folder = build(tmp_path / "images", "train/0.png", "train/1.png", "test/2.png")
    (folder / "metadata.csv").write_text("file_name,label\ntrain/0.png,a\ntest/2.png,b\ntrain/1.png,b\n")
    sources = [load_images(folder, split=split) for split in ("train", "test")]
    assert [[source.label(row) for row in source.dataset] for source in sources] == [[0, 1], [0]]
    assert [source.class_names for source in sources] == [("a", "b"), ("b",)]


def test_metadata_that_is_none_is_one_sentence(tmp_path):
    folder = build(tmp_path / "images", "0.png")
    (folder / "metadata.csv").write_text("patient,age\n1,2\n")
    with pytest.raises(
        ValueError, match=r"'metadata\.csv' in '.*' cannot be read as metadata of its images \(`file_n"
    ):
        load_images(folder)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (("bus.parquet", "train.parquet"), "'bus.parquet'"),
        (("a/1.parquet", "a/train-2.parquet", "b.parquet"), "2: 'a/1.parquet', 'b.parquet'"),
    ],
)
def test_tables_that_datasets_would_leave_out_are_refused(tmp_path, names, left):
    rows = Dataset.from_dict({"image": [{"bytes": png(), "path": None}]}, features=Features(image=datasets.Image()))
    for name in names:
        (tmp_path / "tables" / name).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / "tables" / name)
    with pytest.raises(ValueError, match=f"sorts the files of '.*' into splits by words .* would leave out .*{left}"):
        load_images(tmp_path / "tables")


def test_a_readme_that_lists_files_is_followed(tmp_path):
    folder = build(tmp_path / "images", "first/0.png", "first/1.png", "second/0.png")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: first/*}\n---\n"
    )
    assert load_images(folder).num_rows == 2


def test_images_beside_tables_are_said_to_be_left_out(tmp_path, caplog):
    rows = Dataset.from_dict({"image": [{"bytes": png(), "path": None}]}, features=Features(image=datasets.Image()))
    rows.to_parquet(build(tmp_path / "mixed", "figure.png") / "train.parquet")
    with caplog.at_level(logging.WARNING):
        assert load_images(tmp_path / "mixed").num_rows == 1
    assert "1 parquet or arrow files, which are read, and 1 image files, which are not" in caplog.text


@pytest.mark.parametrize(
    ("split", "reds"),
    [("train[:2]", [0, 1]), ("train[-1:]", [3]), ("train[:50%]+test", [0, 1, 4]), ("test+train[3:]", [4, 3])],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_slices(tmp_path, split, reds, streaming):
    folder = build(tmp_path / "images", *(f"train/{i}.png" for i in range(4)), "test/0.png")
    source = load_images(folder, split=split, streaming=streaming)
    assert [int(np.asarray(source.decode(row))[0, 0, 0]) for row in source.dataset] == reds


def test_a_slice_that_is_none(tmp_path):
    with pytest.raises(
        ValueError, match=r"split is 'train\[:x\]', which is not a slice of a split .*: correct --split"
    ):
        load_images(build(tmp_path / "images", "0.png"), split="train[:x]")

"""What is in the way in a local folder is named in one sentence, or in a warning, and nothing is left out silently."""

import logging
import os
import tarfile
from pathlib import Path

import pytest
from test_data_folders import build, zipped

from hgkd_hf.data import load_images


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            ("train/cat/0.png", "train/dog/0.png", "extra/cat/0.png"),
            r"holds the split 'train' beside 1 images in 'extra', which belong to no split: .* give --dataset",
        ),
        (("train/cat/0.png", "test/cat/0.png", "0.png"), r"'test', 'train' beside 1 images in 'the folder itself'"),
        (
            ("cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png"),
            r"holds the splits 'test', 'train' below its folder 'cat', where they would be mixed: put them above",
        ),
        (
            ("seg_train/cat/0.png", "seg_train/dog/0.png", "seg_test/cat/0.png", "seg_pred/0.png"),
            r"holds the split 'seg_test', 'seg_train' beside 1 images in 'seg_pred', which belong to no split",
        ),
        (("images/0.png", "masks/0.png"), r"holds 'masks' beside 'images', which look like masks and their images"),
        (("train/img/0.png", "train/gt/0.png", "test/img/0.png"), r"holds 'gt' beside 'img', which look like masks"),
        (("JPEGImages/0.jpg", "SegmentationClass/0.png", "Annotations/0.xml"), r"holds 'SegmentationClass' beside"),
        (("0.txt", "1.xml", "README"), r"holds no images or tables, only files such as '.txt', '.xml', 'README'"),
        (("cat/image_0001", "dog/image_0002"), r"only files such as .*give the images the extension of their format"),
        (("dataset_dict.json", "cat/0.png"), r"is no data set that `save_to_disk` wrote \(.*\): repair it, remove"),
        (("state.json", "cat/0.png"), r"is no data set that `save_to_disk` wrote \(.*\): repair it, remove its"),
    ],
)
def test_images_that_would_be_left_out_or_mixed_are_refused(tmp_path, files, match):
    with pytest.raises(ValueError, match=match):
        load_images(build(tmp_path / "images", *files))


def test_a_name_that_is_no_text_is_refused(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    build(folder, "0.png")
    build(tmp_path / "tea", "0.png")
    with pytest.raises(ValueError, match=r"The name 'caf.udce9/0.png' in '.*' is not UTF-8: rename the file or"):
        load_images(tmp_path)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(build(tmp_path, "cat/0.png", "dog/0.png") / "cat" / "1.png")
    assert len([source.decode(row) for source in [load_images(tmp_path)] for row in source.dataset]) == 2


def test_class_folders_in_a_tar_are_said_to_be_none(tmp_path, caplog):
    build(tmp_path / "images", "cat/0.png", "dog/0.png")
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "photos.tar", "w") as tar:
        tar.add(tmp_path / "images", ".")
    with caplog.at_level(logging.WARNING):
        source = load_images(tmp_path / "packed")
    assert (source.num_rows, source.label_column) == (2, None)
    assert "the first './cat', are not read as classes: unpack" in caplog.text


def test_what_is_not_read_is_said(tmp_path, caplog):
    build(tmp_path / "images", "cat/0.png", "dog/0.png", "cat/0.txt", "dog/0.txt", "notes.md", ".DS_Store")
    zipped(tmp_path / "images" / "old.zip", "cat/0.png")
    (tmp_path / "images" / "bird").mkdir()
    with caplog.at_level(logging.WARNING):
        load_images(tmp_path / "images")
    assert "only images are read, and not: 2 .txt, 1 .md, old.zip." in caplog.text
    assert "these folders are empty: 'bird'." in caplog.text


def test_broken_archives_and_links_are_one_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photos.zip").write_bytes(b"PK\3\4 nothing more")
    for path in (tmp_path / "a", tmp_path / "a" / "photos.zip"):
        with pytest.raises(ValueError, match=r"photos\.zip' (cannot be unpacked \(.+\)|is not a zip archive)"):
            load_images(path)
    build(tmp_path / "b", "cat/0.png")
    (tmp_path / "b" / "dog").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"'dog' in '.*b' is a link that leads nowhere: repair or remove it"):
        load_images(tmp_path / "b")
    (tmp_path / "photos.tar.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"not a \.parquet file: .*another archive than \.zip: unpacked"):
        load_images(tmp_path / "photos.tar.gz")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train.parquet", b"PAR1 nothing more"),
        ("train.json", b"{not json"),
        ("train.xml", b"<a>"),
        ("train.tar", b"no archive"),
    ],
)
def test_what_datasets_raises_is_shown_with_its_cause(tmp_path, file, content):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / file).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_images(tmp_path / "bad")
    message = str(caught.value)
    assert "\n" not in message
    assert "--dataset" in message or "--image_column" in message
    assert "while generating the dataset" not in message

"""Every way to name a dataset gives the same rows, and every wrong one a sentence that helps."""

import io
import re
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image

from hgkd_hf.data import decode_image, load_images

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, and a cache of this test's own."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (10, 12, 3), dtype=np.uint8))


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    picture(i).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def imagefolder(tmp_path) -> Path:
    for i in range(6):
        folder = tmp_path / "images" / ("cat" if i < 3 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(i))
    return tmp_path / "images"


def rows(labels: bool = True) -> Dataset:
    """Six rows with images as `datasets` stores them."""
    content = {"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(6)]}
    features = Features({"image": datasets.Image()})
    if labels:
        content["label"], features["label"] = [0, 0, 0, 1, 1, 1], ClassLabel(names=["cat", "dog"])
    return Dataset.from_dict(content, features=features)


@pytest.fixture
def folders(tmp_path, imagefolder) -> dict[str, Path]:
    (tmp_path / "parquets" / "data").mkdir(parents=True)
    for shard in range(2):
        part = rows().shard(2, shard, contiguous=True)
        part.to_parquet(tmp_path / "parquets" / "data" / f"train-{shard:05}-of-00002.parquet")
    rows().to_parquet(tmp_path / "one.parquet")
    rows().save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows(), test=rows().select([0])).save_to_disk(tmp_path / "saved_dict")
    return {
        "imagefolder": imagefolder,
        "parquet folder": tmp_path / "parquets",
        "parquet file": tmp_path / "one.parquet",
        "saved": tmp_path / "saved",
        "saved dict": tmp_path / "saved_dict",
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["imagefolder", "parquet folder", "parquet file", "saved", "saved dict"])
def test_every_source_reads_the_same_rows(folders, kind, streaming):
    source = load_images(folders[kind], streaming=streaming)
    assert (source.image_column, source.label_column, source.class_names) == ("image", "label", ("cat", "dog"))
    assert (source.split, source.name, source.revision) == ("train", str(folders[kind]), None)
    assert source.num_rows == (None if streaming else 6)
    assert re.fullmatch("[0-9a-f]{32}", source.fingerprint)
    read = list(source.dataset)
    assert [row["label"] for row in read] == [0, 0, 0, 1, 1, 1]
    for i, row in enumerate(read):
        assert set(row["image"]) == {"bytes", "path"}, "the column is not decoded"
        assert np.array_equal(decode_image(row["image"]), picture(i))


def test_folder_without_classes_has_no_labels(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(png(0))
    source = load_images(tmp_path / "flat")
    assert (source.label_column, source.class_names, source.num_rows) == (None, None, 1)


def test_split_slice_and_other_split(folders):
    assert load_images(folders["imagefolder"], split="train[:50%]").num_rows == 3
    assert load_images(folders["saved dict"], split="test").num_rows == 1


@pytest.mark.parametrize("column", ["image", "img"])
def test_plain_bytes_and_bytes_dicts_are_found_by_name(tmp_path, column):
    for kind, values in {"bytes": [png(0)], "dicts": [{"bytes": png(0), "path": "0.png"}]}.items():
        Dataset.from_dict({"id": [b"key"], column: values, "labels": [4]}).save_to_disk(tmp_path / kind)
        source = load_images(tmp_path / kind)
        assert (source.image_column, source.label_column, source.class_names) == (column, "labels", None)
        assert np.array_equal(decode_image(source.dataset[0][column]), picture(0))


def test_named_column_wins_and_others_stay(tmp_path):
    two = rows().add_column("fine", [5, 4, 3, 2, 1, 0]).add_column("photo", [png(i) for i in range(6)])
    two.save_to_disk(tmp_path / "two")
    source = load_images(tmp_path / "two", image_column="photo", label_column="fine")
    assert (source.image_column, source.label_column) == ("photo", "fine")
    assert set(source.dataset.column_names) == {"image", "label", "fine", "photo"}
    assert np.array_equal(decode_image(source.dataset[2]["photo"]), picture(2))


def test_max_samples_mixes_classes_and_repeats(folders):
    first, second = (load_images(folders["saved"], max_samples=4) for _ in range(2))
    assert first.num_rows == 4
    assert first.dataset["label"][:] == second.dataset["label"][:]
    assert set(first.dataset["label"]) == {0, 1}, "the first four rows as stored would be 0, 0, 0, 1"
    assert first.dataset["label"][:] != [0, 0, 0, 1]
    assert load_images(folders["saved"], max_samples=99).num_rows == 6
    stream = load_images(folders["saved"], max_samples=4, streaming=True)
    assert [row["label"] for row in stream.dataset] == [0, 0, 0, 1]


def test_max_samples_writes_nothing_beside_the_data(folders):
    before = sorted(folders["saved"].iterdir())
    load_images(folders["saved"], max_samples=4)
    assert sorted(folders["saved"].iterdir()) == before


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_split_names_the_choices(folders, streaming):
    for kind, choices in {
        "imagefolder": "'train'",
        "parquet file": "'train'",
        "saved dict": "'train', 'test'",
    }.items():
        with pytest.raises(ValueError, match=f"has no split 'valid': choose --split from {choices}"):
            load_images(folders[kind], split="valid", streaming=streaming)
    with pytest.raises(ValueError, match="has no split 'test': choose --split from 'train'"):
        load_images(folders["saved"], split="test", streaming=streaming)


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "~/nowhere-at-all", "nowhere.parquet", "sub/x.parquet", "a b"])
def test_missing_path_never_asks_the_network(name):
    with pytest.raises(ValueError, match=r"There is no file or folder '.*': correct --dataset"):
        load_images(name)


def test_absent_hub_dataset_is_one_sentence(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match=r"'user/absent' is not a local path and the Hub cannot be reached: .*--dataset"
    ):
        load_images("user/absent")


def test_hub_options_are_passed_on(monkeypatch):
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = load_images("user/pets", split="train", config_name="small", revision="v1")
    assert asked == {"path": "user/pets", "name": "small", "revision": "v1", "split": "train", "streaming": False}
    assert (source.name, source.revision) == ("user/pets", "v1")


def test_wrong_config_names_the_flag(imagefolder):
    with pytest.raises(ValueError, match=r"'small' not found.*choose one with --dataset_config"):
        load_images(imagefolder, config_name="small")


def test_empty_folder_wrong_file_and_empty_dataset(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"'.*empty' holds no images or tables: correct --dataset"):
        load_images(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is a file, but not a \.parquet file: give --dataset its folder"):
        load_images(tmp_path / "notes.txt")
    rows().select([]).to_parquet(tmp_path / "none.parquet")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"Split 'train' of '.*' has no rows: choose another with --split"):
            load_images(tmp_path / "none.parquet", streaming=streaming)


def test_image_column_errors(tmp_path):
    rows().add_column("mask", [png(i) for i in range(6)]).cast_column("mask", datasets.Image()).save_to_disk(
        tmp_path / "two"
    )
    with pytest.raises(
        ValueError, match=r"Several columns of '.*' hold images: choose --image_column from 'image', 'mask'"
    ):
        load_images(tmp_path / "two")
    with pytest.raises(ValueError, match=r"no column 'photo': choose --image_column from 'image', 'label', 'mask'"):
        load_images(tmp_path / "two", image_column="photo")
    with pytest.raises(ValueError, match=r"Column 'label' of '.*' holds ClassLabel.*, not images: .*--image_column"):
        load_images(tmp_path / "two", image_column="label")
    Dataset.from_dict({"text": ["a"], "blob": [b"b"]}).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"No column of '.*' is of images: name one of 'text', 'blob' with --image_c"):
        load_images(tmp_path / "none")


def test_label_column_and_count_errors(folders, tmp_path):
    with pytest.raises(ValueError, match="has no column 'kind': choose --label_column from 'label'"):
        load_images(folders["saved"], label_column="kind")
    with pytest.raises(ValueError, match=r"max_samples is 0, .*--max_samples"):
        load_images(folders["saved"], max_samples=0)
    fine = Features({"image": datasets.Image(), "a": ClassLabel(names=["x"]), "b": ClassLabel(names=["y"])})
    Dataset.from_dict({"image": [png(0)], "a": [0], "b": [0]}, features=fine).save_to_disk(tmp_path / "fine")
    assert load_images(tmp_path / "fine").label_column is None, "two candidates: no guess"
    assert isinstance(load_images(tmp_path / "fine", label_column="b").dataset.features["a"], ClassLabel)


@pytest.mark.shared_data
def test_real_sets():
    if not (SHARED / "data" / "cifar10").is_dir():
        pytest.skip("needs shared/data/cifar10 beside the checkout")
    source = load_images(SHARED / "data" / "cifar10", split="test", streaming=True, max_samples=3)
    assert (source.image_column, source.label_column, len(source.class_names)) == ("image", "label", 10)
    assert [decode_image(row["image"]).size for row in source.dataset] == [(32, 32)] * 3
    with pytest.raises(ValueError, match="--image_column from 'image', 'mask'"):
        load_images(SHARED / "data" / "camvid", split="test", streaming=True)

"""Rows that name files or URLs: what lies in the dataset is opened, and nothing else, unless it is allowed."""

import io
import socket

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from datasets import Image as ImageFeature
from PIL import Image

from hgkd_hf.data import (
    CorruptImageError,
    DistillationDataset,
    ImageTransform,
    StreamingDistillationDataset,
    load_images,
)
from hgkd_hf.data.access import ImageAccess


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (7, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def table(tmp_path):
    """Writes a table whose rows name images, of which some lie inside of its folder and some outside."""
    for file in ("table/in.png", "table/sub/in.png", "out.png", "table-2/in.png", "table/out.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(png())
    (tmp_path / "table" / "out.png").unlink()
    (tmp_path / "table" / "out.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "table" / "up").symlink_to(tmp_path)

    return lambda *paths: write(tmp_path / "table" / "train.parquet", *[(None, path) for path in paths])


def write(file, *images) -> str:
    """Rows of (bytes, path), as they are: `datasets` itself would read the files while writing."""
    table = pa.table(
        {"image": pa.array([{"bytes": data, "path": path} for data, path in images], ImageFeature.pa_type)}
    )
    pq.write_table(table.cast(Features(image=ImageFeature()).arrow_schema), file)
    return str(file)


INSIDE = ["in.png", "sub/in.png", "./sub/../in.png", "{folder}/table/in.png"]
OUTSIDE = [
    "../out.png",
    "sub/../../out.png",
    "{folder}/out.png",
    "{folder}/table-2/in.png",
    "out.png",  # a link that leads out
    "up/out.png",
    "file://{folder}/table/in.png",
    "local://{folder}/out.png",
    "http://127.0.0.1:9/a.png",
    "https://example.org/a.png",
    "hf://datasets/some/other/a.png",
    "zip://a.png::{folder}/out.zip",
    "zip://a.png::http://127.0.0.1:9/a.zip",
    "http://127.0.0.1:9/a.png::{folder}/table/in.png",
    "simplecache::{folder}/table/in.png",
    "simplecache::file://{folder}/out.png",
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("path", INSIDE)
def test_files_of_the_dataset_are_opened(table, tmp_path, path, streaming):
    source = load_images(table(path.format(folder=tmp_path)), streaming=streaming)
    (row,) = source.dataset
    assert source.decode(row).getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("path", OUTSIDE)
def test_others_are_not(table, tmp_path, path, streaming):
    source = load_images(table(path.format(folder=tmp_path)), streaming=streaming)
    (row,) = source.dataset
    with pytest.raises(CorruptImageError, match=r"outside of the dataset \(--allow_remote_images opens such images\)"):
        source.decode(row, name="row 0")


def test_they_are_skipped_counted_and_named(table, tmp_path):
    source = load_images(table("in.png", "../out.png"))
    dataset = DistillationDataset(source, ImageTransform(8, True), seed=0, skipped_log=tmp_path / "skipped.tsv")
    assert dataset[1]["sample_index"] == 0
    assert dataset.num_skipped == 1
    assert "--allow_remote_images" in (tmp_path / "skipped.tsv").read_text()


@pytest.mark.parametrize("path", ["../out.png", "{folder}/out.png", "up/out.png", "file://{folder}/out.png"])
def test_they_are_opened_where_that_is_allowed(table, tmp_path, path):
    source = load_images(table(path.format(folder=tmp_path)), allow_remote_images=True)
    assert source.decode(source.dataset[0]).size == (8, 8)


def test_links_of_a_folder_of_images_are_followed(tmp_path):
    """They are its owner's, who named the folder."""
    (tmp_path / "images").mkdir()
    (tmp_path / "out.png").write_bytes(png())
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "out.png")
    source = load_images(tmp_path / "images")
    assert source.decode(source.dataset[0]).size == (8, 8)


@pytest.mark.parametrize("name", ["../out.png", "{folder}/out.png", "file://{folder}/out.png"])
def test_metadata_of_a_folder_names_nothing_outside(tmp_path, name):
    (tmp_path / "images").mkdir()
    for file in ("out.png", "images/a.png"):
        (tmp_path / file).write_bytes(png())
    (tmp_path / "images" / "metadata.csv").write_text(f"file_name\n{name.format(folder=tmp_path)}\n")
    with pytest.raises(ValueError, match="cannot be read as metadata of its images"):
        load_images(tmp_path / "images")


def test_bytes_win_over_any_path(tmp_path):
    source = load_images(write(tmp_path / "bytes.parquet", (png(), "/etc/passwd")))
    assert source.decode(source.dataset[0]).size == (8, 8)


@pytest.mark.parametrize("streaming", [False, True])
def test_other_columns_of_images_are_not_read(tmp_path, streaming):
    columns = {
        name: pa.array([{"bytes": data, "path": path}], ImageFeature.pa_type)
        for name, data, path in (
            ("image", png(), None),
            ("mask", None, "http://127.0.0.1:9/mask.png"),
            ("other", None, "/etc/hostname"),
        )
    }
    features = Features(image=ImageFeature(), mask=ImageFeature(), other=ImageFeature())
    pq.write_table(pa.table(columns).cast(features.arrow_schema), tmp_path / "train.parquet")
    source = load_images(tmp_path / "train.parquet", streaming=streaming, image_column="image")
    dataset = StreamingDistillationDataset if streaming else DistillationDataset
    assert next(iter(dataset(source, ImageTransform(8, True), seed=0)))["pixel_values"].shape == (3, 8, 8)
    assert len(source.fingerprint) == 32


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("hf://datasets/user/pets@main/train/a.png", True),
        ("hf://datasets/user/pets/train/a.png", True),
        ("zip://a.png::hf://datasets/user/pets@main/a.zip", True),
        ("/cache/datasets--user--pets/snapshots/1/a.png", True),
        ("/cache/datasets--user--pets-2/snapshots/1/a.png", False),
        ("hf://datasets/user/pets-2@main/a.png", False),
        ("hf://datasets/user/pets@main/../../../other/a.png", False),
        ("hf://models/user/pets/a.png", False),
    ],
)
def test_files_of_a_repository_on_the_hub(path, inside):
    access = ImageAccess(roots=("/cache/datasets--user--pets", "hf://datasets/user/pets"))
    if inside:
        assert access.locate(path) == path
    else:
        with pytest.raises(PermissionError):
            access.locate(path)

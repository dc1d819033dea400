"""The fingerprint of a source changes with what is trained on, and with nothing else."""

import io
import shutil

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image

from hgkd_hf.data import load_images

KINDS = ("folder", "table", "stream")


def bmp(seed: int) -> bytes:
    """Images of one size in bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


def write(folder, kind, images, labels=None, names="012345"):
    labels = [i % 2 for i in range(len(images))] if labels is None else labels
    shutil.rmtree(folder, ignore_errors=True)
    if kind == "folder":
        for name, image, label in zip(names, images, labels):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            (folder / str(label) / f"{name}.bmp").write_bytes(image)
    else:
        rows = {"image": [{"bytes": i, "path": f"{n}.bmp"} for n, i in zip(names, images)], "label": labels}
        folder.mkdir(parents=True)
        Dataset.from_dict(rows, features=Features(image=datasets.Image(), label=Value("int64"))).to_parquet(
            folder / "train.parquet"
        )
    return folder


def fingerprint(folder, kind, **options):
    return load_images(folder, streaming=kind == "stream", **options).fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_same_rows_have_the_same_fingerprint_wherever_they_lie(tmp_path, kind):
    images = [bmp(i) for i in range(6)]
    first = fingerprint(write(tmp_path / "a", kind, images), kind)
    assert fingerprint(write(tmp_path / "a", kind, images), kind) == first
    assert fingerprint(write(tmp_path / "elsewhere" / "b", kind, images), kind) == first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        {"images": [bmp(i + 10) for i in range(6)]},  # all images replaced: same names, number and sizes
        {"images": [bmp(i) for i in range(5)] + [bmp(9)]},
        {"labels": [0, 1, 0, 1, 1, 1]},
        {"images": [bmp(i) for i in range(5)]},
    ],
)
def test_changed_rows_have_another(tmp_path, kind, change):
    settings = {"images": [bmp(i) for i in range(6)]}
    first = fingerprint(write(tmp_path / "a", kind, **settings), kind)
    assert fingerprint(write(tmp_path / "a", kind, **settings | change), kind) != first


def test_sizes_and_names_of_all_embedded_images_count(tmp_path):
    images = [bmp(i % 5) for i in range(300)]  # more than are sampled
    first = fingerprint(write(tmp_path / "a", "table", images, names=[str(i) for i in range(300)]), "table")
    images[7] += b"\0"
    assert fingerprint(write(tmp_path / "a", "table", images, names=[str(i) for i in range(300)]), "table") != first
    images[7] = images[7][:-1]
    names = [str(i) for i in range(299)] + ["other"]
    assert fingerprint(write(tmp_path / "a", "table", images, names=names), "table") != first


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_the_number_of_samples_counts(tmp_path, kind):
    folder = write(tmp_path / "a", kind, [bmp(i) for i in range(6)])
    counts = [fingerprint(folder, kind, max_samples=count) for count in (3, 4, None)]
    assert len(set(counts)) == 3
    assert fingerprint(folder, kind, max_samples=3) == counts[0]


def test_rows_without_images_and_plain_bytes(tmp_path):
    rows = {"image": [bmp(0), None, bmp(1)]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    first = fingerprint(tmp_path / "saved", "table")
    Dataset.from_dict({"image": [bmp(0), bmp(1), bmp(1)]}).save_to_disk(tmp_path / "other")
    assert fingerprint(tmp_path / "other", "table") != first

"""kNN and probes on images of their own bank are noticed, whatever the splits are called."""

import io
import logging
import shutil

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from hgkd_hf.data import Flags, bank_and_queries, load_images, shared_images

COUNT = 40


def image(seed: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def folder(root, **splits):
    for split, seeds in splits.items():
        for seed in seeds:
            (root / split / "ab"[seed % 2]).mkdir(parents=True, exist_ok=True)
            (root / split / "ab"[seed % 2] / f"{seed}.png").write_bytes(image(seed, "PNG"))
    return root


def table(root, **splits):
    root.mkdir()
    for split, seeds in splits.items():
        rows = {"image": [{"bytes": image(seed, "BMP"), "path": None} for seed in seeds], "label": [0] * len(seeds)}
        features = Features(image=datasets.Image(), label=ClassLabel(names=["a"]))
        Dataset.from_dict(rows, features=features).to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


KINDS = {"folder": folder, "table": table}  # of files of different and of equal sizes


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_split_is_refused(tmp_path, kind):
    root = KINDS[kind](tmp_path / "images", train=range(COUNT), test=range(100, 110))
    bank = load_images(root, max_samples=20)
    flags = Flags(split="--knn_split")
    with pytest.raises(
        ValueError, match=r"10 of 10 images looked at of split 'train' are among those of split 'tr.*find"
    ):
        bank_and_queries(bank, load_images(root, max_samples=10, flags=flags))
    with pytest.raises(
        ValueError, match=r"another --knn_split, or cut .* --split 'train\[:90%\]' and --knn_split 'trai"
    ):
        bank_and_queries(bank, load_images(root, split="train[:50%]", flags=flags))
    queries = load_images(root, split="test")
    assert shared_images(bank, queries) == (0, 10)
    assert [source.num_rows for source in bank_and_queries(bank, queries)] == [20, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_split_that_do_not_meet_are_fine(tmp_path, kind):
    root = KINDS[kind](tmp_path / "images", train=range(COUNT))
    bank, queries = (load_images(root, split=split) for split in ("train[:50%]", "train[50%:]"))
    assert shared_images(bank, queries) == (0, COUNT // 2)
    overlapping = load_images(root, split="train[40%:60%]")
    assert shared_images(bank, overlapping) == (4, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_split_is_said(tmp_path, caplog, kind):
    root = KINDS[kind](tmp_path / "images", train=range(COUNT), test=range(COUNT))
    assert bank_and_queries(load_images(root), load_images(root, split="test"))[1].num_rows == COUNT
    assert "40 of 40 images looked at of split 'test' are among those of split 'train'" in caplog.text


def test_a_copied_folder_is_said(tmp_path, caplog):
    root = folder(tmp_path / "images", train=range(COUNT))
    shutil.copytree(root, tmp_path / "other")
    bank_and_queries(load_images(root), load_images(tmp_path / "other"))
    assert "40 of 40 images" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_are_logged(tmp_path, caplog, kind):
    root = KINDS[kind](tmp_path / "images", train=range(COUNT), test=range(COUNT - 2, COUNT + 18))
    with caplog.at_level(logging.WARNING):
        bank_and_queries(load_images(root), load_images(root, split="test"))
    assert "2 of 20 images looked at of split 'test' are among those of split 'train'" in caplog.text


def test_queries_have_the_banks_classes(tmp_path):
    for split, names, labels in (("train", ["cat", "dog"], [0, 1]), ("test", ["dog", "cat"], [0, 1])):
        rows = {"image": [{"bytes": image(len(split) * 10 + i, "PNG"), "path": None} for i in labels]}
        features = Features(image=datasets.Image(), label=ClassLabel(names=names))
        (tmp_path / "images").mkdir(exist_ok=True)
        Dataset.from_dict(rows | {"label": labels}, features=features).save_to_disk(tmp_path / split)
    bank, queries = bank_and_queries(load_images(tmp_path / "train"), load_images(tmp_path / "test"))
    assert queries.class_names == bank.class_names == ("cat", "dog")
    assert [queries.label(row) for row in queries.dataset] == [1, 0]


def test_numbers_without_names_stay(tmp_path):
    for split in ("train", "test"):
        rows = {
            "image": [{"bytes": image(len(split) * 10 + i, "PNG"), "path": None} for i in range(2)],
            "label": [1, 0],
        }
        features = Features(image=datasets.Image(), label=Value("int64"))
        Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / split)
    _, queries = bank_and_queries(load_images(tmp_path / "train"), load_images(tmp_path / "test"))
    assert [queries.label(row) for row in queries.dataset] == [1, 0]

"""Mixup, cutmix and label smoothing: what is mixed, by how much, and that (seed, epoch, index) decides it."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hgkd_hf.data import (
    DistillationDataset,
    ImageTransform,
    Mixing,
    StreamingDistillationDataset,
    class_names,
    collate,
    load_images,
    sample_generator,
)

PLAIN = ImageTransform(8, train=True, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_probability=0)


def write(folder, labels=(0, 1, 2, 0, 1), named=True) -> str:
    """Images of one grey value each, 40 * row."""
    pictures = [PILImage.new("RGB", (8, 8), (40 * row,) * 3) for row in range(len(labels))]
    kinds = {"label": ClassLabel(names=["a", "b", "c"])} if named else {}
    rows = Dataset.from_dict({"image": pictures, "label": list(labels)})
    rows = rows.cast(Features({"image": Image(), "label": rows.features["label"]} | kinds))
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    return str(folder)


def build(source, **fields) -> DistillationDataset:
    return DistillationDataset(source, PLAIN, seed=3, return_labels=True, mixing=Mixing(3, **fields))


def test_label_smoothing_by_hand():
    expected = torch.tensor([0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3])
    torch.testing.assert_close(Mixing(3, label_smoothing=0.1).soft_label(1), expected)
    assert Mixing(3).soft_label(2).tolist() == [0, 0, 1]


def test_mixup_adds_images_and_labels_in_one_proportion(tmp_path):
    source = load_images(write(tmp_path / "data"))
    data, plain = build(source, mixup=1.0), DistillationDataset(source, PLAIN, seed=3, return_labels=True)
    shares = set()
    for index in range(5):
        sample = data[index]
        generator = sample_generator(3, 0, index, "mix")
        partner = plain[int(torch.randint(5, (), generator=generator))]
        own = plain[index]
        _, share = data.mixing.mix(own["pixel_values"], partner["pixel_values"], generator)
        expected = share * own["pixel_values"] + (1 - share) * partner["pixel_values"]
        assert torch.equal(sample["pixel_values"], expected.round().to(torch.uint8))
        labels = torch.zeros(3)
        labels[own["labels"]] += share
        labels[partner["labels"]] += 1 - share
        torch.testing.assert_close(sample["labels"], labels)
        shares.add(round(share, 6))
    assert len(shares) == 5


def test_cutmix_labels_are_the_shares_of_the_area():
    one, other = torch.zeros(2, 3, 16, 12, dtype=torch.uint8)
    other = other + 1
    shares = []
    for seed in range(200):
        mixed, share = Mixing(2, cutmix=1.0).mix(one, other, torch.Generator().manual_seed(seed))
        assert share == pytest.approx(1 - mixed.float().mean().item(), abs=1e-6)
        rows, columns = mixed[0].any(1).sum(), mixed[0].any(0).sum()
        assert mixed[0].sum() == rows * columns  # a rectangle
        shares.append(share)
    assert 0.4 < sum(shares) / 200 < 0.75  # Beta(1, 1), and rectangles are cut off at the border


def test_both_are_drawn_equally_often():
    one, other = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    other = other + 200
    mixing = Mixing(2, mixup=1.0, cutmix=1.0)
    mixed = [mixing.mix(one, other, torch.Generator().manual_seed(seed))[0] for seed in range(300)]
    cut = sum(bool(((m == 0) | (m == 200)).all()) for m in mixed)
    assert 110 < cut < 190


def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path):
    source = load_images(write(tmp_path / "data"))
    data, again = build(source, mixup=0.8, cutmix=1.0), build(source, mixup=0.8, cutmix=1.0)
    for index in (4, 0, 2):
        assert torch.equal(again[index]["pixel_values"], data[index]["pixel_values"])
    before = data[1]["labels"]
    data.set_epoch(1)
    assert not torch.equal(data[1]["labels"], before)
    batch = collate([data[0], data[1]])
    assert batch["labels"].shape == (2, 3)
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(2))


def test_classes_of_a_source(tmp_path):
    assert class_names(load_images(write(tmp_path / "named"))) == ("a", "b", "c")
    assert class_names(load_images(write(tmp_path / "unnamed", named=False))) == ("0", "1", "2")
    with pytest.raises(ValueError, match=r"has the label -1, but its classes are 0 to 2: choose another --split"):
        class_names(load_images(write(tmp_path / "hidden", labels=(0, -1, 2))))
    source = load_images(write(tmp_path / "other"))
    with pytest.raises(ValueError, match="has no labels: name their column with --label_column"):
        class_names(type(source)(**vars(source) | {"label_column": None}))
    streamed = load_images(write(tmp_path / "stream", named=False), streaming=True)
    with pytest.raises(ValueError, match="does not name its classes: drop --streaming"):
        class_names(streamed)
    with pytest.raises(ValueError, match="read a second row of any index: set both to 0, or drop --streaming"):
        StreamingDistillationDataset(streamed, PLAIN, seed=0, return_labels=True, mixing=Mixing(3, mixup=1.0))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"mixup": -1.0}, r"mixup is -1.0, but it must not be negative \(--mixup\)"),
        ({"cutmix": -0.5}, "cutmix is -0.5"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0, but it must be in \[0, 1\)"),
    ],
)
def test_bad_values(fields, match):
    with pytest.raises(ValueError, match=match):
        Mixing(3, **fields)

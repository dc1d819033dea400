"""Pictures: colours of one basis, filled-in cells, neighbours; drawn for every kind of distiller."""

import sys

import pytest
import torch
from transformers import AutoModel

from hgkd_hf import HGKDConfig, HGKDForPreTraining, SparseUNetConfig
from hgkd_hf.evaluation import Features
from hgkd_hf.students.features import has_feature_scales
from hgkd_hf.visualize import (
    features_figure,
    nearest,
    neighbours_figure,
    pca_colours,
    prediction_columns,
    prediction_figure,
    unnormalise,
)
from hgkd_hf.visualize.figure import new_figure
from hgkd_hf.visualize.pictures import HIDDEN_GREY, OTHER, SAME

pytest.importorskip("matplotlib", reason="needs the extra `demo`")


def test_colours_share_one_basis():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 4, 4, generator=generator)
    first, same, shifted = pca_colours(features, features, features + 1.0)
    assert first.shape == (2, 4, 4, 3)
    assert torch.equal(first, same)
    assert not torch.allclose(first, shifted), "an own basis and range would hide the shift"
    assert 0 <= first.min() < 0.05
    assert 0.95 < first.max() <= 1


def test_unnormalised_pixels_by_hand():
    pixels = torch.tensor([-1.0, 0.0, 9.0]).view(1, 3, 1, 1)
    assert unnormalise(pixels, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)).flatten().tolist() == pytest.approx([0.3, 0.4, 1.0])


def test_prediction_columns(hgkd):
    pixels = torch.randn(2, 3, 64, 64)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 3, 3] = True
    hgkd.train()
    columns = prediction_columns(hgkd, pixels, masks)
    assert hgkd.training
    assert list(columns) == [
        "image", "what the student sees", "teacher's features", "student's prediction", "squared error",
    ]  # fmt: skip
    seen = columns["what the student sees"]
    assert (seen[0, :16, :16] == HIDDEN_GREY).all()
    assert torch.equal(seen[0, 16:], columns["image"][0, 16:])
    assert columns["squared error"].shape == (2, 8, 8)
    assert prediction_figure(hgkd, pixels, masks).get_size_inches()[0] == 10
    batch = {
        "pixel_values": pixels,
        "bool_masked_pos": masks,
        "labels": torch.zeros(2),
    }  # as datasets with labels give it
    (axis,) = prediction_figure(hgkd, **batch).axes
    assert len(axis.images) == 10


def test_pixels_filled_in_have_their_cells_brightness(encoder_config, monkeypatch):
    student = SparseUNetConfig(encoder_config=encoder_config, decoder_width=32, decoder_stride=1)
    config = HGKDConfig(student_config=student, image_size=64, feature_weight=0, pixel_weight=1, decoder="full")
    model = HGKDForPreTraining(config)
    pixels = torch.full((1, 3, 64, 64), -0.5)
    pixels[..., 32:] = 0.5
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = False
    model.pixel_head.weight.data.zero_()
    model.pixel_head.bias.data.zero_()  # the mean of every cell, and its cells have no spread
    columns = prediction_columns(model, pixels, masks)
    assert list(columns) == ["image", "what the student sees", "filled in"]
    torch.testing.assert_close(columns["filled in"], columns["image"])


def test_nearest_is_by_cosine():
    bank = Features(torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]]))
    queries = Features(torch.tensor([[10.0, 1.0], [0.0, 0.1]]))
    assert nearest(bank, queries, 2).tolist() == [[0, 2], [1, 2]]
    assert nearest(bank, queries, 9).shape == (2, 3)


def test_feature_maps_of_a_stock_student(encoder_config, vit):
    pixels = torch.randn(2, 3, 64, 64)
    figure = features_figure(AutoModel.from_config(encoder_config), pixels, (0.5,) * 3, (0.5,) * 3)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "image", "8 channels, stride 4", "16 channels, stride 8", "32 channels, stride 16",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no feature maps at several scales"):
        features_figure(vit, pixels, (0.5,) * 3, (0.5,) * 3)


def test_frames_tell_the_classes_of_neighbours():
    bank = Features(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    queries = Features(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), torch.tensor([0, 0]))
    pictures = [torch.full((4, 4, 3), value) for value in (0.0, 0.25, 0.5, 0.75)]
    neighbours = nearest(bank, queries, 2)
    (axis,) = neighbours_figure(bank, queries, dict(enumerate(pictures[:2])), pictures[2:], neighbours).axes
    shown = {
        tuple(int(side) for side in image.get_extent()[::3]): float(image.get_array().max()) for image in axis.images
    }
    assert shown == {(0, 0): 0.5, (1, 0): 0, (2, 0): 0.25, (0, 1): 0.75, (1, 1): 0.25, (2, 1): 0}
    frames = {(int(line.get_xdata()[0]), int(line.get_ydata()[0])): line.get_color() for line in axis.lines}
    assert frames == {(1, 0): SAME, (2, 0): OTHER, (1, 1): OTHER, (2, 1): SAME}


def test_a_vision_transformer_has_no_such_maps(encoder_config, vit):
    assert has_feature_scales(encoder_config)
    assert not has_feature_scales(vit.config)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'hgkd_hf\[demo\]'"):
        new_figure(1, 1)

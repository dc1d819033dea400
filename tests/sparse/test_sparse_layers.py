"""Every kind of layer by itself, against what torch computes from the visible positions alone."""

import copy

import pytest
import torch
from sparse_nets import draw_cells
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.bit.modeling_bit import BitMaxPool2d, WeightStandardizedConv2d
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2DropPath, ConvNextV2GRN, ConvNextV2LayerNorm
from transformers.models.hgnet_v2.modeling_hgnet_v2 import HGNetV2LearnableAffineBlock

from hgkd_hf.sparse import checkpoint_contexts, sparsify, visible
from hgkd_hf.sparse.masking import VisibleCells

WINDOWS = {
    "3x3": nn.Conv2d(8, 8, 3, padding=1),
    "3x3 stride 2": nn.Conv2d(8, 8, 3, stride=2, padding=1),
    "3x3 dilation 2": nn.Conv2d(8, 8, 3, padding=2, dilation=2),
    "4x4 same": nn.Conv2d(8, 8, 4, padding="same"),
    "2x2 stride 2": nn.Conv2d(8, 8, 2, stride=2),
    "4x4 stride 4 padded": nn.Conv2d(8, 8, 4, stride=4, padding=1),
    "1x1 stride 2": nn.Conv2d(8, 8, 1, stride=2),
    "1x3": nn.Conv2d(8, 8, (1, 3), padding=(0, 1)),
    "7x7 stride 4": nn.Conv2d(8, 8, 7, stride=4, padding=2),
    "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=2),
    "depthwise 3x3": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "depthwise 7x7": nn.Conv2d(8, 8, 7, padding=3, groups=8),
    "depthwise 1x7": nn.Conv2d(8, 8, (1, 7), padding=(0, 3), groups=8),
    "depthwise 5x5 stride 2": nn.Conv2d(8, 16, 5, stride=2, padding=2, groups=8),
    "depthwise dilation 2": nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
    "depthwise 1x1": nn.Conv2d(8, 8, 1, groups=8),
    "standardised": WeightStandardizedConv2d(8, 8, 3, padding=None),
    "standardised same": WeightStandardizedConv2d(8, 8, 3, stride=2, padding="same"),
    "valid after padding": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2, padding="valid")),
    "depthwise after padding": nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(8, 8, 5, stride=2, groups=8)),
    "max": nn.MaxPool2d(3, 2, 1),
    "max ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max same": BitMaxPool2d(3, 2),
    "max after padding": nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.Identity(), nn.MaxPool2d(3, 2)),
    "average": nn.AvgPool2d(2),
    "average padded": nn.AvgPool2d(3, 2, 1),
    "average inside": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "average ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
    "average ceil inside": nn.AvgPool2d(5, 2, 1, ceil_mode=True, count_include_pad=False),
    "average of four": nn.AvgPool2d(3, 1, 1, divisor_override=4),
    "average after padding": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(3, 2)),
    "sigmoid": nn.Sigmoid(),
    "hardsigmoid": nn.Hardsigmoid(),
    "affine": HGNetV2LearnableAffineBlock(0.5, 0.3),
    "channels first": ConvNextV2LayerNorm(8, data_format="channels_first"),
    "max dilated": nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True),
}


def on_cells(layer: nn.Module, images: torch.Tensor, cells: VisibleCells, backend: str) -> torch.Tensor:
    layer = sparsify(nn.Sequential(copy.deepcopy(layer)).to(images.dtype))
    with visible(cells, backend) as sparse:
        return sparse.leave(layer(sparse.enter(images)))


@pytest.mark.parametrize("backend", ["cells", "masked"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name, backend):
    """What does not look at a whole image is torch's layer on the masked image, masked again; at every block size."""
    torch.manual_seed(0)
    for block in (4, 8, 16):
        cells = draw_cells(2, (3, 2), 0.4, seed=block)
        images = torch.randn(2, 8, 3 * block, 2 * block, dtype=torch.float64, requires_grad=True)
        layer = copy.deepcopy(WINDOWS[name]).double()
        check_window(layer, images, cells, backend, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4, 8])
@pytest.mark.parametrize("name", ["1x1", "1x1 stride 2", "3x3", "3x3 dilation 2"])
def test_windows_in_float32(name, block):
    """float32 takes kernels of its own on CPU."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 1) if name == "1x1" else copy.deepcopy(WINDOWS[name])
    block *= layer.stride[0]
    images = torch.randn(2, 8, 3 * block, 2 * block, requires_grad=True)
    check_window(layer, images, draw_cells(2, (3, 2), 0.4, seed=block), "cells", rtol=1e-4, atol=1e-4)


def check_window(layer: nn.Module, images: torch.Tensor, cells: VisibleCells, backend: str, **tolerance) -> None:
    expected = layer(images * cells.visible(images.shape[2:]))
    expected = expected * cells.visible(expected.shape[2:])
    net = sparsify(nn.Sequential(copy.deepcopy(layer)))
    with visible(cells, backend) as sparse:
        result = sparse.leave(net(sparse.enter(images)))
    torch.testing.assert_close(result, expected, **tolerance)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((result * weight).sum(), [images, *net.parameters()])
    theirs = torch.autograd.grad((expected * weight).sum(), [images, *layer.parameters()])
    for gradient, value in zip(ours, theirs):
        torch.testing.assert_close(gradient, value, **tolerance)


@pytest.mark.parametrize("backend", ["cells", "masked"])
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(
    "name", ["3x3", "3x3 dilation 2", "grouped", "depthwise 3x3", "depthwise 7x7", "standardised"]
)
def test_windows_of_small_cells(name, block, backend):
    cells = draw_cells(2, (4, 3), 0.4, seed=block)
    images = torch.randn(2, 8, 4 * block, 3 * block, dtype=torch.float64)
    layer = copy.deepcopy(WINDOWS[name]).double()
    seen = cells.visible(images.shape[2:])
    result = on_cells(layer, images, cells, backend)
    torch.testing.assert_close(result, layer(images * seen) * seen, rtol=1e-10, atol=1e-12)


IMAGE_LAYERS = {
    "group": nn.GroupNorm(2, 8),
    "group without weights": nn.GroupNorm(4, 8, affine=False),
    "global average": nn.AdaptiveAvgPool2d(1),
    "global average by size": nn.AvgPool2d(100, ceil_mode=True),
}


@pytest.mark.parametrize("backend", ["cells", "masked"])
@pytest.mark.parametrize("name", [*IMAGE_LAYERS, "response"])
def test_whole_image(name, backend):
    """What looks at a whole image is torch's layer on an image that consists of the visible positions only."""
    torch.manual_seed(0)
    layer = ConvNextV2GRN(8) if name == "response" else copy.deepcopy(IMAGE_LAYERS[name])
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter)
    mask = torch.tensor([[[True, False, True], [True, True, True]], [[False, False, False], [True, True, False]]])
    cells = VisibleCells(mask)
    images = torch.randn(2, 8, 8, 12, dtype=torch.float64)
    seen = cells.visible((8, 12))[:, 0]
    sparse_layer = sparsify(nn.Sequential(copy.deepcopy(layer)))
    with visible(cells, backend) as sparse:
        x = sparse.enter(images)
        if name == "response":
            result = sparse.leave(sparse_layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        else:
            y = sparse_layer(x)
            result = sparse.leave(y.expand_as(x)) * seen[:, None]
    for image, where, ours in zip(images, seen, result):
        points = image[:, where][None, :, :, None]  # (1, C, n, 1)
        theirs = layer(points.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if name == "response" else layer(points)
        torch.testing.assert_close(ours[:, where], theirs.expand_as(points)[0, :, :, 0], rtol=1e-10, atol=1e-12)
        assert not ours[:, ~where].any()


def test_response_of_a_silent_channel_has_a_gradient():
    layer = sparsify(nn.Sequential(ConvNextV2GRN(4)))
    cells = draw_cells(1, (2, 2), 0.5)
    images = torch.zeros(1, 4, 4, 4, requires_grad=True)
    with visible(cells) as sparse:
        layer(sparse.enter(images).permute(0, 2, 3, 1)).sum().backward()
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("layer", [ConvNextV2DropPath(0.5), nn.Dropout2d(0.5)], ids=["drop path", "dropout2d"])
def test_drawn_once_for_an_image(layer):
    cells = draw_cells(16, (3, 3), 0.3)
    images = torch.ones(16, 4, 6, 6)
    results = []
    for backend in ("cells", "masked"):
        torch.manual_seed(0)
        results.append(on_cells(layer.train(), images, cells, backend))
    assert torch.equal(*results)
    values = [image[:, where].unique(dim=1) for image, where in zip(results[0], cells.visible((6, 6))[:, 0])]
    assert all(value.shape == (4, 1) for value in values)
    assert {v for value in values for v in value.flatten().tolist()} == {0.0, 2.0}
    assert torch.equal(on_cells(layer.eval(), images, cells, "cells"), images * cells.visible((6, 6)))


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.ZeroPad2d((0, -1, 0, 0)), "padding with zeros"),
        (nn.ConstantPad2d(1, 0.5), "padding with zeros"),
        (nn.LayerNorm((8, 4, 4)), "normalises over positions"),
        (nn.AdaptiveAvgPool2d(2), "of size 2 belong to no cell"),
        (nn.MaxPool2d(2, return_indices=True), "indices"),
        (nn.Linear(8, 8), "matrix over channels"),
        (nn.AvgPool2d(3, 2), "both sides together"),
        (nn.Softmax(1), "Softmax"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_refused_settings(layer, match):
    with pytest.raises(ValueError, match=match) as error:
        sparsify(nn.Sequential(nn.ReLU(), nn.Sequential(layer)))
    assert "'1.0'" in str(error.value)


def test_padding_that_nothing_takes():
    """Zeros that no convolution or pooling takes up are refused by the layer that misses them."""
    net = sparsify(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2)))
    with visible(draw_cells(1, (2, 2), 0.5)) as sparse, pytest.raises(ValueError, match="does not map a cell"):
        net(sparse.enter(torch.randn(1, 3, 8, 8)))


class Checkpointed(nn.Sequential):
    """Recomputes its layers in backward."""

    def __init__(self, *layers, **options):
        super().__init__(*layers)
        self.options = options

    def forward(self, x):
        return checkpoint(super().forward, x, **self.options)


def gradients(net: nn.Module, backend: str, inside: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    cells = draw_cells(2, (3, 3), 0.5)
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64, requires_grad=True)
    with visible(cells, backend) as sparse:
        loss = sparse.leave(net(sparse.enter(images))).square().sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return [images.grad, *(parameter.grad for parameter in net.parameters())]


def checkpointed_net(**options) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1, groups=8)
    net = sparsify(nn.Sequential(*layers).double()).eval()
    return Checkpointed(*net, **options) if options else net


@pytest.mark.parametrize("backend", ["cells", "masked"])
def test_checkpointing_sees_the_mask(backend):
    net = checkpointed_net(use_reentrant=False, context_fn=checkpoint_contexts)
    for ours, theirs in zip(gradients(net, backend), gradients(checkpointed_net(), backend)):
        assert torch.equal(ours, theirs)
        assert ours.any()


@pytest.mark.parametrize("backend", ["cells", "masked"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "without contexts"])
def test_checkpointing_without_the_mask(reentrant, backend):
    """Right where the backward stands inside `visible`, refused where it does not: never silently dense."""
    inside = gradients(checkpointed_net(use_reentrant=reentrant), backend, inside=True)
    for ours, theirs in zip(inside, gradients(checkpointed_net(), backend)):
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match=r"context_fn=hgkd_hf.sparse.checkpoint_contexts"):
        gradients(checkpointed_net(use_reentrant=reentrant), backend)


def test_dense_checkpointing_after_a_masked_forward():
    """Dense fine-tuning with checkpoints is nobody's business but torch's."""
    net = checkpointed_net(use_reentrant=True)
    with torch.no_grad(), visible(draw_cells(1, (2, 2), 0.5)) as sparse:
        net(sparse.enter(torch.randn(1, 3, 8, 8, dtype=torch.float64)))
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    net(images).sum().backward()
    recomputed, images.grad = images.grad, None
    nn.Sequential(*net)(images).sum().backward()
    assert torch.equal(images.grad, recomputed)

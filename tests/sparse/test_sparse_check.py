"""`check_exact` sees what a forward does between its modules, names it, and leaves no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sparse_nets import build
from torch import nn
from transformers import ConvNextConfig, HGNetV2Config, ResNetConfig
from transformers.models.hgnet_v2.modeling_hgnet_v2 import HGNetV2Embeddings

from hgkd_hf.sparse import check_exact, sparsify


class Block(nn.Module):
    """A convolution, then something functional."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.function(self.convolution(x))


class SqueezedNorm(nn.Module):
    """Squeeze and excitation with a BatchNorm on the pooled vectors: its statistics are not those of single cells."""

    def __init__(self):
        super().__init__()
        self.pool, self.norm = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x * self.norm(self.pool(x))


def chain(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.ReLU(), block), nn.Conv2d(4, 4, 3, padding=1))


EXACT = {
    "relu": F.relu,
    "gate": lambda x: x * torch.sigmoid(x),
    "skip": lambda x: x + 2 * x,
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "channels last": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
}
LEAKS = {
    "pooling": (lambda x: F.avg_pool2d(x, 3, 1, 1), "'1.1' \\(Block\\)"),
    "mean": (lambda x: x - x.mean((2, 3), keepdim=True), "'1.1' \\(Block\\)"),
    "norm": (lambda x: F.layer_norm(x, x.shape[1:]), "'1.1' \\(Block\\)"),
    "batch": (lambda x: x - x.mean(), "'1.1' \\(Block\\)"),
    "padding": (lambda x: F.pad(x, (1, 1, 1, 1)), "'1.1' \\(Block\\)"),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "'1.1' \\(Block\\)"),
    "flip": (lambda x: x.flip(3), "'1.1' \\(Block\\)"),
    "shape": (lambda x: x.view(2, -1), "'1.1' \\(Block\\)|'2' \\(Conv2d\\)"),
    "bias": (lambda x: x + 1, "'2' \\(Conv2d\\)"),  # seen where the next window reads hidden positions
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_functions_pass(name):
    check_exact(chain(Block(EXACT[name])), 8)


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_named(name):
    function, match = LEAKS[name]
    with pytest.raises(ValueError, match=match):
        check_exact(chain(Block(function)), 8)


def test_statistics_of_pooled_vectors():
    with pytest.raises(ValueError, match=r"'1.1.norm' \(BatchNorm2d\)"):
        check_exact(chain(SqueezedNorm()), 8)


def test_stem_that_pads_in_its_forward():
    """HGNetV2's, with windows that would fit by themselves."""
    stem = HGNetV2Embeddings(HGNetV2Config(stem_channels=[3, 4, 4]))
    stem.stem2a.convolution.padding = stem.stem2b.convolution.padding = "same"
    stem.pool = nn.Identity()
    with pytest.raises(ValueError, match="the forward of HGNetV2Embeddings cannot run"):
        check_exact(stem, 16)


def test_strides_are_named():
    with pytest.raises(ValueError, match=r"'encoder.stages.3.layers.0.layer.1.convolution'.*cell_size 16 does"):
        check_exact(build(ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], embedding_size=8)), 16)


@pytest.mark.parametrize("sparse", [False, True])
def test_leaves_no_trace(sparse):
    net = build(ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 16], embedding_size=8), dtype=torch.float32)
    net = sparsify(net) if sparse else net
    net.train()
    net.encoder.stages[1].eval()
    before = copy.deepcopy(net)
    classes, modes = [type(m) for m in net.modules()], [m.training for m in net.modules()]
    random_state = torch.get_rng_state()
    check_exact(net, 32)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [type(m) for m in net.modules()] == classes
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    for (key, value), other in zip(net.state_dict().items(), before.state_dict().values()):
        assert torch.equal(value, other), key


def test_other_channels_and_cells():
    check_exact(build(ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 8], num_stages=2, num_channels=1)), 16, 1)

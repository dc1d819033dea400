"""Every backend computes what the readable reference computes: outputs, gradients and running statistics."""

import copy

import pytest
import torch
from sparse_nets import assert_equal, build, draw_cells, run
from torch import nn
from transformers import ResNetConfig

from hgkd_hf.sparse import sparsify, visible
from hgkd_hf.sparse.masking import VisibleCells

RESNETS = {
    "resnet-18": ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
    "resnet-50": ResNetConfig(),
    "narrow-18": ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[8, 16, 32, 64], embedding_size=8, layer_type="basic"),
    "narrow-50": ResNetConfig(depths=[2, 3, 2, 2], hidden_sizes=[32, 64, 96, 128], embedding_size=8),
}


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.6, 0.75])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n.startswith("resnet") else ()) for n in RESNETS]
)
def test_cells_equal_masked(name, ratio, train, bias):
    net = build(RESNETS[name], bias).train(train)
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    cells = draw_cells(2, (3, 4), ratio)
    assert_equal(run(net, images, cells, "cells"), run(net, images, cells, "masked"), 1e-9)


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50"])
def test_float32_outputs(name):
    net = build(RESNETS[name], dtype=torch.float32).train()
    images = torch.randn(2, 3, 96, 96)
    cells = draw_cells(2, (3, 3), 0.6)
    results, expected = (run(net, images, cells, backend) for backend in ("cells", "masked"))
    for key in expected:
        if key.startswith("map") or key == "pooled":
            assert (results[key] - expected[key]).abs().max() <= 1e-3 * expected[key].abs().max(), key


@pytest.mark.parametrize("backend", ["cells", "masked"])
def test_no_mask_is_the_stock_network(backend):
    stock = build(RESNETS["narrow-18"]).train()
    sparse = sparsify(copy.deepcopy(stock))
    assert sparse.state_dict().keys() == stock.state_dict().keys()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with visible(draw_cells(2, (2, 2), 0.5), backend) as masked:
        masked_output = sparse(masked.enter(images)).last_hidden_state
    sparse.load_state_dict(stock.state_dict())  # the masked forward moved the running statistics
    assert torch.equal(sparse(images).last_hidden_state, stock(images).last_hidden_state)
    assert masked_output.abs().sum() > 0
    for (name, buffer), other in zip(sparse.named_buffers(), stock.buffers()):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize("backend", ["cells", "masked"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["narrow-18", "narrow-50"])
def test_hidden_pixels_never_matter(name, train, backend):
    net = sparsify(build(RESNETS[name])).train(train)
    cells = draw_cells(2, (3, 4), 0.5)
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    hidden = ~cells.visible((96, 128))
    changed = torch.where(hidden, torch.randn_like(images) * 100, images)

    def features(pixel_values):
        with visible(cells, backend) as sparse:
            outputs = net(sparse.enter(pixel_values), output_hidden_states=True)
            return [sparse.leave(h) for h in outputs.hidden_states]

    for before, after in zip(features(images), features(changed)):
        assert torch.equal(before, after)
        assert before.abs().sum() > 0


def test_uneven_masks():
    """An isolated cell, a corner, a whole image, and images with different numbers of visible cells."""
    mask = torch.ones(4, 3, 3, dtype=torch.bool)
    mask[0, 1, 1] = False
    mask[1, 0, 0] = mask[1, 2, 1] = mask[1, 2, 2] = False
    mask[2] = False
    mask[3, 0, 2] = False
    net = build(RESNETS["narrow-18"]).train()
    images = torch.randn(4, 3, 96, 96, dtype=torch.float64)
    cells = VisibleCells(mask)
    assert_equal(run(net, images, cells, "cells"), run(net, images, cells, "masked"), 1e-9)


def test_threads_do_not_share_a_mask():
    import threading

    from hgkd_hf.sparse import active_backend

    seen = []
    with visible(draw_cells(1, (2, 2), 0.5)):
        thread = threading.Thread(target=lambda: seen.append(active_backend()))
        thread.start()
        thread.join()
        assert active_backend() is not None
    assert seen == [None]
    assert active_backend() is None


def test_max_pool_of_signed_input():
    """Hidden neighbours count as zero, what lies outside the image as nothing: visible only for negative input."""
    pool = sparsify(nn.Sequential(nn.MaxPool2d(3, 2, 1)))
    images = -1 - torch.rand(1, 1, 8, 8)
    mask = torch.tensor([[[False, True], [True, True]]])
    cells = VisibleCells(mask)
    results = []
    for backend in ("cells", "masked"):
        with visible(cells, backend) as sparse:
            results.append(sparse.leave(pool(sparse.enter(images))))
    assert torch.equal(*results)
    assert results[0][0, 0, 0, 0] < 0


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.InstanceNorm2d(4), "InstanceNorm2d"),
        (nn.Conv2d(4, 4, 3, padding=0), "padding"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Upsample(scale_factor=2), "Upsample"),
    ],
)
def test_leaky_module_is_named(module, match):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), module))
    with pytest.raises(ValueError, match=match) as error:
        sparsify(net)
    assert "'1.1'" in str(error.value)
    assert type(net[0]) is nn.Conv2d  # nothing was changed


def test_unknown_backend():
    with pytest.raises(ValueError, match="'dense' does not exist: choose one of cells, masked"):
        visible(draw_cells(1, (2, 2), 0.5), "dense")

"""Every backend computes what the readable reference computes: outputs, gradients and running statistics."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModel, ResNetConfig

from hgkd_hf.masking import VisibleCells, random_cell_mask
from hgkd_hf.sparse import sparsify, visible

RESNETS = {
    "resnet-18": ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
    "resnet-50": ResNetConfig(),
    "narrow-18": ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[8, 16, 32, 64], embedding_size=8, layer_type="basic"),
    "narrow-50": ResNetConfig(depths=[2, 3, 2, 2], hidden_sizes=[32, 64, 96, 128], embedding_size=8),
}


def build(config: ResNetConfig, bias: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    net = AutoModel.from_config(config)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and bias:
            module.bias = nn.Parameter(torch.randn(module.out_channels) * 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.to(dtype)


def draw_cells(batch: int, grid: tuple[int, int], ratio: float, seed: int = 0) -> VisibleCells:
    generator = torch.Generator().manual_seed(seed)
    return VisibleCells(torch.stack([random_cell_mask(grid, ratio, generator) for _ in range(batch)]))


def run(net: nn.Module, images: torch.Tensor, cells: VisibleCells, backend: str) -> dict[str, torch.Tensor]:
    """Every result of a forward and backward of `net`, whose class swap leaves the original untouched."""
    net = sparsify(copy.deepcopy(net))
    images = images.clone().requires_grad_()
    with visible(cells, backend) as sparse:
        outputs = net(sparse.enter(images), output_hidden_states=True)
        maps = [sparse.leave(hidden_state) for hidden_state in outputs.hidden_states]
        pooled = sparse.leave(outputs.pooler_output.expand(-1, -1, *outputs.last_hidden_state.shape[2:]))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(m.shape, generator=generator, dtype=torch.float64).to(m.dtype) for m in [*maps, pooled]]
    visible_pooled = pooled * cells.visible(pooled.shape[2:])  # the reference's mean is also written to hidden cells
    loss = sum((m * w).sum() for m, w in zip([*maps, visible_pooled], weights))
    loss.backward()
    results = {f"map {i}": m.detach() for i, m in enumerate(maps)}
    results |= {"pooled": visible_pooled.detach(), "gradient of the input": images.grad}
    results |= {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    results |= {f"buffer {name}": b for name, b in net.named_buffers()}
    return results


def assert_equal(results: dict, expected: dict, tolerance: float) -> None:
    assert results.keys() == expected.keys()
    # A bias that BatchNorm follows has gradient zero but for rounding: such values are held against the largest one.
    floor = 1e-6 * max(value.abs().max() for name, value in expected.items() if name.startswith("gradient"))
    for name, value in expected.items():
        error = (results[name] - value).abs().max() / value.abs().max().clamp(min=floor)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


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
    outputs = [key for key in expected if key.startswith("map") or key == "pooled"]
    assert_equal(
        {k: results[k] for k in outputs} | {"gradient": torch.zeros(1)},
        {k: expected[k] for k in outputs} | {"gradient": torch.zeros(1)},
        1e-3,
    )


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
        (nn.GroupNorm(1, 4), "GroupNorm"),
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

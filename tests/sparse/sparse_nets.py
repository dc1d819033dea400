"""Small networks and the comparison of backends that the tests of the sparse layers share."""

import copy

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from hgkd_hf.sparse import sparsify, visible
from hgkd_hf.sparse.masking import VisibleCells, random_cell_mask


def build(config: PreTrainedConfig, bias: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network of `config` in which no parameter or buffer has a value that hides mistakes, such as 0 or 1."""
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
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.min() == parameter.max():  # norms' weights and biases, layer scales
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.dim() > 1:  # some families start so small that their branches vanish
                parameter.mul_((0.5 / parameter[0].norm()).clamp(min=1))
    return net.to(dtype)


def draw_cells(batch: int, grid: tuple[int, int], ratio: float, seed: int = 0) -> VisibleCells:
    generator = torch.Generator().manual_seed(seed)
    return VisibleCells(torch.stack([random_cell_mask(grid, ratio, generator) for _ in range(batch)]))


def feature_maps(outputs, sparse) -> dict[str, torch.Tensor]:
    """What a network's outputs hold, as dense maps."""
    states = [state for state in (*outputs.hidden_states, outputs.last_hidden_state) if state.dim() == 4]
    return {f"map {i}": sparse.leave(state) for i, state in enumerate(states)}


def pooled_map(net: nn.Module, outputs, sparse, cells: VisibleCells) -> dict[str, torch.Tensor]:
    """What a network's pooling module gives, at every visible cell."""
    pooled = outputs.get("pooler_output")
    if pooled is None or net.config.model_type.startswith("convnext"):  # ConvNeXt pools in its own forward
        return {}
    pooled = pooled.flatten(1)[:, :, None, None]
    if pooled.shape[0] == len(cells):
        return {"pooled": cells.scatter(pooled)}
    return {"pooled": pooled * cells.visible(cells.grid)}


def run(net: nn.Module, images: torch.Tensor, cells: VisibleCells, backend: str) -> dict[str, torch.Tensor]:
    """Every result of a forward and backward of `net`, whose class swap leaves the original untouched."""
    net = sparsify(copy.deepcopy(net))
    images = images.clone().requires_grad_()
    torch.manual_seed(2)  # stochastic depth draws one number for an image with every backend
    with visible(cells, backend) as sparse:
        outputs = net(sparse.enter(images), output_hidden_states=True)
        maps = feature_maps(outputs, sparse) | pooled_map(net, outputs, sparse, cells)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(m.shape, generator=generator, dtype=torch.float64).to(m) for m in maps.values()]
    sum((m * w).sum() for m, w in zip(maps.values(), weights)).backward()
    results = {name: m.detach() for name, m in maps.items()}
    results |= {"gradient of the input": images.grad}
    results |= {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    results |= {f"buffer {name}": b for name, b in net.named_buffers()}
    return results


def assert_equal(results: dict, expected: dict, tolerance: float) -> None:
    assert results.keys() == expected.keys()
    # A bias that BatchNorm follows has gradient zero but for rounding: such values are held against the largest one.
    floor = 1e-6 * max(value.abs().max() for name, value in expected.items() if name.startswith("gradient"))
    for name, value in expected.items():
        error = (results[name] - value).abs().max() / value.abs().max().clamp(min=floor)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"

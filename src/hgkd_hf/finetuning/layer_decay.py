"""Layer-wise learning-rate decay: the earlier a layer of a pre-trained encoder, the smaller its steps."""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def layer_depths(encoder: nn.Module) -> dict[str, int]:
    """The depth of each parameter of a CNN: 0 at the finest scale that it computes, one more at each coarser one.

    Found by a forward on the meta device, so that no naming scheme is assumed. What works on pooled values (squeeze
    and excitation) belongs to the scale of the layer before it, what is never reached to the coarsest.

    Args:
        encoder: takes images (B, 3, H, W).
    """
    side = 256
    strides: dict[str, int] = {}
    reached = 1

    def note(name: str, module: nn.Module):
        def hook(_module, _inputs, output):
            nonlocal reached
            output = output if isinstance(output, Tensor) else None
            if output is not None and output.dim() == 4 and output.shape[2] > 1:
                reached = side // output.shape[2]  # (B, C, H, W) or (B, H, W, C): the third is a side in both
            for parameter, _ in module.named_parameters(recurse=False):
                strides[f"{name}.{parameter}" if name else parameter] = reached

        return hook

    twin = copy.deepcopy(encoder).to("meta").eval()
    for name, module in twin.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(note(name, module))
    with torch.no_grad():
        twin(torch.empty(1, 3, side, side, device="meta"))
    order = sorted(set(strides.values()))
    return {name: order.index(strides.get(name, order[-1])) for name, _ in encoder.named_parameters()}


def decay_learning_rates(optimizer: Optimizer, encoder: nn.Module, layer_decay: float) -> None:
    """Split a new optimizer's groups so that a layer of depth i of n learns at `layer_decay ** (n - i)` of its rate.

    Everything outside the encoder keeps the full rate. Clark et al. 2020 (arXiv 2003.10555, appendix B) for language
    models; SparK fine-tunes ResNet-50 with 0.7 (arXiv 2301.03580, appendix).

    Args:
        optimizer: has taken no step, and no scheduler holds it.
        encoder: the pre-trained part of the model.
        layer_decay: in (0, 1].
    """
    depths = layer_depths(encoder)
    count = 1 + max(depths.values())
    exponents = {id(parameter): count - depths[name] for name, parameter in encoder.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        split = defaultdict(list)
        for parameter in group["params"]:
            split[exponents.get(id(parameter), 0)].append(parameter)
        groups += [
            {**group, "params": split[exponent], "lr": group["lr"] * layer_decay**exponent}
            for exponent in sorted(split)
        ]
    optimizer.param_groups[:] = groups

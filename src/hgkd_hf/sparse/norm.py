"""BatchNorm over rows of positions, on one process or over all."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .context import recomputing


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`layer` applied to x (n, C, ...), every entry of the other axes being one observation of a channel.

    As `nn.BatchNorm2d`, running statistics and momentum included, for any number of axes. Where `layer.synchronised`
    is set, training statistics are those of all processes together (weighted by their numbers of observations), as in
    `nn.SyncBatchNorm`, but on any device and backend. A forward that gradient checkpointing computes again does not
    count twice in the running statistics.
    """
    momentum = 0.0 if recomputing() else layer.momentum
    if layer.training and layer.track_running_stats and not recomputing():
        layer.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / layer.num_batches_tracked.item()
    batch_statistics = layer.training or layer.running_mean is None
    if batch_statistics and getattr(layer, "synchronised", False) and dist.is_initialized():
        return _synchronised_batch_norm(layer, x, momentum)
    return F.batch_norm(
        x,
        layer.running_mean,
        layer.running_var,
        layer.weight,
        layer.bias,
        batch_statistics,
        momentum or 0.0,
        layer.eps,
    )


def _synchronised_batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, momentum: float | None) -> Tensor:
    from torch.distributed.nn.functional import all_reduce  # differentiable; not loaded by `import torch`

    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    rows = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = rows.new_tensor(x.numel() / x.shape[1])
    dist.all_reduce(count)
    # Two passes, since the difference of mean square and squared mean loses digits in float32.
    mean = all_reduce(rows.sum(axes)) / count
    centred = rows - mean.view(shape)
    variance = all_reduce(centred.square().sum(axes)) / count
    if layer.training and layer.track_running_stats:
        with torch.no_grad():
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), momentum)
    y = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.weight is not None:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all processes, on any device."""

    synchronised = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return batch_norm(self, x)


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` likewise, e.g. in a projection head."""

    synchronised = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) or (B, C, L) to the same shape."""
        return batch_norm(self, x)


SYNCHRONISED = {nn.BatchNorm1d: SynchronisedBatchNorm1d, nn.BatchNorm2d: SynchronisedBatchNorm2d}


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm of `model`, sparse ones too, share its training statistics among processes, in place."""
    for module in model.modules():
        if type(module) in SYNCHRONISED:
            module.__class__ = SYNCHRONISED[type(module)]
        elif isinstance(module, nn.BatchNorm2d):
            module.synchronised = True

"""BatchNorm over rows of positions, on one process or over all."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

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
    y, mean, variance, count = _SharedStatistics.apply(x, layer.weight, layer.bias, layer.eps)
    if layer.training and layer.track_running_stats:
        with torch.no_grad():
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), momentum)
    return y


class _SharedStatistics(torch.autograd.Function):
    """BatchNorm by the statistics of all processes: one collective forwards, one backwards.

    The passes over the positions are those of PyTorch's own kernels: BatchNorm by given statistics, which is what
    evaluation does. `torch.nn.SyncBatchNorm` has the same formulas, for accelerators alone.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(n, C, ...) to the same, and the mean (C), the biased variance (C) and the number () of observations."""
        channels = x.shape[1]
        rows = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)  # on CPUs far faster than var_mean
        statistics = torch.cat([mean, variance, rows.new_tensor([x.numel() / channels])])
        of_all = [torch.empty_like(statistics) for _ in range(dist.get_world_size())]
        dist.all_gather(of_all, statistics)
        # Weighted by their numbers of observations; squared means are not subtracted, which loses digits in float32.
        means, variances, counts = torch.stack(of_all).split([channels, channels, 1], 1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean).square()) * counts).sum(0) / count
        parameters = (None if p is None else p.to(mean.dtype) for p in (weight, bias))
        y = F.batch_norm(x, mean, variance, *parameters, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias; the last two are this process' own, which DDP averages as any others."""
        x, weight, mean, variance, count = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        # The statistics depend on every x: x also gets the means of both gradients over all observations.
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        inverse = (variance + ctx.eps).rsqrt()
        slope, offset = -sums / count * scale * inverse
        shape = [1, -1] + [1] * (x.dim() - 2)
        of_x.addcmul_(x, (slope * inverse).to(x.dtype).view(shape))  # in place: large maps are costly to allocate
        of_x.add_((offset - slope * inverse * mean).to(x.dtype).view(shape))
        return of_x, None if weight is None else of_weight, None if weight is None else of_bias, None


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

"""Whiten a teacher's features, so far that no direction of its channels decides what is learned."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

CALIBRATION_BATCHES = 128
SHRINKAGE = 1.0  # of correlations, whose mean eigenvalue is 1; by measurement, docs/results.md
SMALLEST_VARIANCE = 1e-6


class Whitening(nn.Module):
    """Rows x (N, D), each channel standardised to z, to W z = s (R + a I)^(-1/2) z with R the correlation of channels.

    Variances of the directions of z (R's eigenvalues, 1 on the mean) become about alike above a = `SHRINKAGE` and stay
    in proportion below; s makes their mean 1. With a large a z remains as it is. Source: ZCA-cor whitening
    (arXiv:1512.00809) with shrinkage a, which is ours; PHI-S (arXiv:2410.01680) compares normalisations of teachers'
    features.

    Mean and correlation are those of the first `CALIBRATION_BATCHES` batches of the training, of all processes; W
    follows after 1, 2, 4, 8, ... of them and is fixed then. They are buffers of the checkpoint. In eval mode nothing
    changes.
    """

    mean: Tensor
    covariance: Tensor
    matrix: Tensor
    num_batches: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("covariance", torch.zeros(channels, channels))
        self.register_buffer("matrix", torch.eye(channels))
        self.register_buffer("num_batches", torch.tensor(0))
        self._calibrates = True  # a steady state does not ask the accelerator for num_batches
        self.register_load_state_dict_post_hook(lambda module, keys: setattr(module, "_calibrates", True))

    def forward(self, rows: Tensor) -> Tensor:
        """(N, D) float32 to the same shape."""
        with torch.autocast(rows.device.type, enabled=False):
            if self.training and self._calibrates:
                self._calibrate(rows)
            return (rows - self.mean) @ self.matrix

    @torch.compiler.disable
    @torch.no_grad()
    def _calibrate(self, rows: Tensor) -> None:
        batches = int(self.num_batches) + 1
        self._calibrates = batches <= CALIBRATION_BATCHES
        if not self._calibrates:
            return
        self.num_batches += 1
        sums = _summed(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # Centred before they are multiplied: squared means are not subtracted, which loses digits in float32.
        covariance = _summed((rows - mean).mT @ (rows - mean)) / count
        share, shift = 1 / batches, mean - self.mean
        self.covariance.lerp_(covariance, share).add_(torch.outer(shift, shift), alpha=share * (1 - share))
        self.mean.add_(shift, alpha=share)
        if batches & (batches - 1) == 0:
            self.matrix.copy_(whitening_matrix(self.covariance))


def _summed(x: Tensor) -> Tensor:
    """x, over all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def whitening_matrix(covariance: Tensor) -> Tensor:
    """M (D, D) of a covariance (D, D) with x M the whitened row x of mean 0; computed in float64 on the CPU.

    NaN where the covariance is not finite, so that the trainer skips the step and takes the statistics back.
    """
    exact = covariance.double().cpu()
    if not exact.isfinite().all():
        return torch.full_like(covariance, torch.nan)
    deviations = exact.diagonal().clamp(min=SMALLEST_VARIANCE).sqrt()
    variances, directions = torch.linalg.eigh(exact / torch.outer(deviations, deviations))
    variances = variances.clamp(min=0)
    scales = (variances + SHRINKAGE).rsqrt()
    size = (variances * scales**2).mean().clamp(min=SMALLEST_VARIANCE).sqrt()
    return (directions * (scales / size) @ directions.mT / deviations[:, None]).to(covariance)

"""The sparse layers: stock torch layers that ask the running forward's backend, and are themselves when there is none."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .context import active_backend


class SparseLayer:
    """Mixed into a stock layer class: inside `visible(...)` the backend's operation `op` takes its forward's place."""

    op: ClassVar[str]

    def forward(self, x: Tensor) -> Tensor:
        """Dense maps (B, C, H, W) outside `visible`; inside, whatever the backend's features are."""
        backend = active_backend()
        if backend is None:
            return super().forward(x)
        return getattr(backend, self.op)(self, super().forward, x)


class SparseConv2d(SparseLayer, nn.Conv2d):
    """`nn.Conv2d` on visible cells."""

    op = "conv2d"


class SparseBatchNorm2d(SparseLayer, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over visible positions."""

    op = "batch_norm"


class SparseMaxPool2d(SparseLayer, nn.MaxPool2d):
    """`nn.MaxPool2d` on visible cells."""

    op = "max_pool2d"


class SparseGlobalAvgPool2d(SparseLayer, nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d(1)`: the mean over an image's visible positions."""

    op = "global_avg_pool2d"

"""What a backend is: all that sparse layers and students ask of the one that computes a masked forward."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from .masking import VisibleCells

Dense = Callable[[Tensor], Tensor]  # a layer's own forward, on dense maps


class Backend(Protocol):
    """Computes the layers of a sparsified network on the visible cells of one batch.

    Images come in by `enter`; what a feature is after that is the backend's own business, until `leave` makes a dense
    map of it. Between them every layer calls the operation of its name with itself, its own dense forward and its
    input. Every backend gives what `MaskedBackend`, the reference, gives at visible positions.

    Attributes:
        cells: the mask of the batch.
        cell_size: of the image's cells in pixels (height, width); None before `enter`.
    """

    cells: VisibleCells
    cell_size: tuple[int, int] | None

    @abstractmethod
    def enter(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the network's first layer takes."""

    @abstractmethod
    def leave(self, x: Tensor) -> Tensor:
        """A feature of the network to a dense map (B, C, H, W), zero at hidden positions."""

    @abstractmethod
    def conv2d(self, layer: nn.Conv2d, dense: Dense, x: Tensor) -> Tensor:
        """Convolution: hidden and outside positions count as zeros."""

    @abstractmethod
    def max_pool2d(self, layer: nn.MaxPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Maximum over a window: hidden positions count as zeros, those outside the image not at all."""

    @abstractmethod
    def avg_pool2d(self, layer: nn.AvgPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Mean over a window: hidden positions count as zeros; a window over the whole map is a global mean."""

    @abstractmethod
    def zero_pad2d(self, layer: nn.ConstantPad2d, dense: Dense, x: Tensor) -> Tensor:
        """Zeros around the image, for the convolution or pooling that follows."""

    @abstractmethod
    def batch_norm(self, layer: nn.BatchNorm2d, dense: Dense, x: Tensor) -> Tensor:
        """BatchNorm with the statistics of visible positions only."""

    @abstractmethod
    def group_norm(self, layer: nn.GroupNorm, dense: Dense, x: Tensor) -> Tensor:
        """GroupNorm over each image's visible positions, and the activation that BiT's holds."""

    @abstractmethod
    def global_response_norm(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """ConvNeXtV2's GRN over each image's visible positions."""

    @abstractmethod
    def global_avg_pool2d(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Mean over each image's visible positions."""

    @abstractmethod
    def squeeze_excitation(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Channels times a gate that is a function of their means over each image's visible positions."""

    @abstractmethod
    def pointwise(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """A layer on single positions with f(0) != 0."""

    @abstractmethod
    def drop(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Stochastic depth or channel dropout: drawn once for each image."""

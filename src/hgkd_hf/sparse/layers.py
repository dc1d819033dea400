"""The sparse layers: stock layers that ask the running forward's backend, and are themselves when there is none.

Here stands which classes are known: `sparse_base` for what must be swapped, `POINTWISE` for what needs nothing.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .context import active_backend, recomputing
from .norm import SynchronisedBatchNorm2d, batch_norm


class SparseLayer:
    """Mixed into a stock layer class: inside `visible(...)` the backend's operation `op` takes its forward's place."""

    op: ClassVar[str]
    ran_masked = False  # whether the last forward was a masked one; only to recognise a recomputation without mask

    def forward(self, x: Tensor) -> Tensor:
        """Dense maps (B, C, H, W) outside `visible`; inside, whatever the backend's features are.

        Raises:
            RuntimeError: gradient checkpointing recomputes a masked forward without its mask.
        """
        backend = active_backend()
        if backend is not None:
            if not self.ran_masked:
                self.ran_masked = True
            return getattr(backend, self.op)(self, super().forward, x)
        if self.ran_masked:
            if recomputing():
                raise RuntimeError(
                    "gradient checkpointing recomputes a masked forward without its mask: call torch.utils.checkpoint "
                    "with use_reentrant=False and context_fn=hgkd_hf.sparse.checkpoint_contexts."
                )
            self.ran_masked = False
        return super().forward(x)


class Convolution(SparseLayer):
    """`nn.Conv2d`, grouped and depthwise too, on visible cells."""

    op = "conv2d"

    def kernel(self) -> Tensor:
        """The weight (out channels, in channels / groups, k, k) to convolve with."""
        return self.weight


class StandardisedConvolution(Convolution):
    """transformers' `WeightStandardizedConv2d`: every filter has mean 0 and variance 1 (1903.10520)."""

    def kernel(self) -> Tensor:
        """The standardised weight."""
        filters = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(filters, None, None, training=True, momentum=0.0, eps=self.eps).reshape_as(self.weight)


class ZeroPadding(SparseLayer):
    """`nn.ZeroPad2d` before a convolution or pooling that does not pad by itself."""

    op = "zero_pad2d"


class MaxPooling(SparseLayer):
    """`nn.MaxPool2d` on visible cells."""

    op = "max_pool2d"


class AveragePooling(SparseLayer):
    """`nn.AvgPool2d` on visible cells."""

    op = "avg_pool2d"


class GlobalAveragePooling(SparseLayer):
    """`nn.AdaptiveAvgPool2d(1)`: the mean over an image's visible positions."""

    op = "global_avg_pool2d"


class BatchNormalisation(SparseLayer):
    """`nn.BatchNorm2d` over visible positions."""

    op = "batch_norm"

    @property
    def stock_forward_runs(self) -> bool:
        """Whether a forward would be the stock one: not under a mask, computed again, or shared among processes."""
        lost_its_mask = recomputing() and self.ran_masked  # which the stock forward refuses
        own = recomputing() or getattr(self, "synchronised", False)
        return active_backend() is None and (lost_its_mask or not own)

    def forward(self, x: Tensor) -> Tensor:
        """As every sparse layer; a recomputed dense forward leaves the running statistics alone, and where training
        statistics are shared, so are those of whole images.
        """
        if active_backend() is None and not self.stock_forward_runs:
            return batch_norm(self, x)
        return super().forward(x)


class BatchNormalisationAndActivation(BatchNormalisation):
    """timm's `BatchNormAct2d`: BatchNorm, and the activation in one module."""

    def forward(self, x: Tensor) -> Tensor:
        """As `BatchNormalisation`, then dropout and activation where the stock forward did not run."""
        complete = self.stock_forward_runs
        y = super().forward(x)
        return y if complete else self.act(self.drop(y))


class GroupNormalisation(SparseLayer):
    """`nn.GroupNorm` over each image's visible positions."""

    op = "group_norm"


class GlobalResponseNormalisation(SparseLayer):
    """ConvNeXtV2's GRN over each image's visible positions."""

    op = "global_response_norm"

    @property
    def channels_last(self) -> bool:
        """Whether its maps are (B, H, W, C); timm has both layouts."""
        return getattr(self, "channel_dim", -1) == -1


class SqueezeExcitation(SparseLayer):
    """timm's squeeze-and-excitation (1709.01507): its squeeze is the mean over an image's visible positions."""

    op = "squeeze_excitation"

    def excite(self, mean: Tensor) -> Tensor:
        """Means (n, C, 1, 1) to gates of the same shape."""
        if hasattr(self, "conv_reduce"):  # EfficientNet's and MobileNet's
            return self.gate(self.conv_expand(self.act1(self.conv_reduce(mean))))
        return self.gate(self.fc2(self.act(self.bn(self.fc1(mean)))))


class TorchvisionSqueezeExcitation(SqueezeExcitation):
    """torchvision's, whose layers have other names."""

    def excite(self, mean: Tensor) -> Tensor:
        """Means (n, C, 1, 1) to gates of the same shape."""
        return self.scale_activation(self.fc2(self.activation(self.fc1(mean))))


class Drop(SparseLayer):
    """Stochastic depth and `nn.Dropout2d`: what is drawn is drawn once for an image, not once for a cell."""

    op = "drop"


class Pointwise(SparseLayer):
    """A layer that computes every position by itself but makes something of nothing: f(0) is not 0."""

    op = "pointwise"

    @property
    def channels_last(self) -> bool:
        """Whether its maps are (B, H, W, C)."""
        return False


class PointwiseChannels(Pointwise):
    """`nn.Linear` and `nn.LayerNorm` over channels, which stand last unless the layer has a `data_format`."""

    @property
    def channels_last(self) -> bool:
        """Whether its maps are (B, H, W, C)."""
        return getattr(self, "data_format", "channels_last") == "channels_last"


# What computes every position by itself and keeps zero at zero, so that a mask passes through untouched.
POINTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Dropout,
    nn.Flatten,  # of a pooled map; what it makes of any other, only a matrix could take, which is refused
)

# torch's layers; a subclass counts as its base if it computes as its base.
TORCH = {
    nn.Conv2d: Convolution,
    nn.ConstantPad2d: ZeroPadding,
    nn.MaxPool2d: MaxPooling,
    nn.AvgPool2d: AveragePooling,
    nn.AdaptiveAvgPool2d: GlobalAveragePooling,
    SynchronisedBatchNorm2d: BatchNormalisation,
    nn.BatchNorm2d: BatchNormalisation,
    nn.GroupNorm: GroupNormalisation,
    nn.LayerNorm: PointwiseChannels,
    nn.Linear: PointwiseChannels,
    nn.Sigmoid: Pointwise,
    nn.Hardsigmoid: Pointwise,
    nn.Dropout2d: Drop,
}

# Layers of transformers, timm and torchvision that compute something of their own, by name: importing them would load
# every model.
LIBRARIES = {
    "transformers": {
        "WeightStandardizedConv2d": StandardisedConvolution,
        "BitMaxPool2d": MaxPooling,
        "BitGroupNormActivation": GroupNormalisation,
        "ConvNextLayerNorm": PointwiseChannels,
        "ConvNextV2LayerNorm": PointwiseChannels,
        "ConvNextV2GRN": GlobalResponseNormalisation,
        "HGNetV2LearnableAffineBlock": Pointwise,
        "ConvNextDropPath": Drop,
        "ConvNextV2DropPath": Drop,
        "BitDropPath": Drop,
        "PoolFormerDropPath": Drop,
    },
    "timm": {
        "BatchNormAct2d": BatchNormalisationAndActivation,
        "LayerNorm": PointwiseChannels,
        "LayerNorm2d": Pointwise,
        "GlobalResponseNorm": GlobalResponseNormalisation,
        "SEModule": SqueezeExcitation,
        "SqueezeExcite": SqueezeExcitation,
        "DropPath": Drop,
        "Sigmoid": Pointwise,
    },
    "torchvision": {"SqueezeExcitation": TorchvisionSqueezeExcitation, "StochasticDepth": Drop},
}

# Their blocks that multiply by parameters of their own or hold `nn.Linear`, and mix positions in no other way.
BLOCKS = {
    "transformers": {"ConvNextLayer", "ConvNextV2Layer", "PoolFormerLayer"},
    "timm": {"ConvNeXtBlock", "Mlp", "GlobalResponseNormMlp"},
}


def library(module: nn.Module) -> str:
    """The package that the class of `module` comes from."""
    return type(module).__module__.partition(".")[0]


def is_known_block(module: nn.Module) -> bool:
    """Whether `module` is one of `BLOCKS`."""
    return type(module).__name__ in BLOCKS.get(library(module), ())


def is_pointwise(module: nn.Module) -> bool:
    """Whether `module` needs no swap: it computes every position by itself and f(0) = 0."""
    if type(module).__module__ == "transformers.activations":
        return type(module).__name__ not in ("LaplaceActivation", "XIELUActivation")
    if type(module).__module__.startswith("timm.layers.activations"):
        return type(module).__name__ not in ("Sigmoid", "HardSigmoid")
    return isinstance(module, POINTWISE)


def sparse_base(module: nn.Module) -> type[SparseLayer] | None:
    """Which kind of sparse layer `module` must become, None if it is not known."""
    kind = type(module)
    known = LIBRARIES.get(library(module), {})
    if kind.__name__ in known:
        return known[kind.__name__]
    for stock, sparse in TORCH.items():
        same = ("forward", "_conv_forward") if stock is nn.Conv2d else ("forward",)
        if isinstance(module, stock) and all(getattr(kind, name) is getattr(stock, name) for name in same):
            return sparse
    return None


@cache
def sparse_class(base: type[SparseLayer], stock: type[nn.Module]) -> type[nn.Module]:
    """`stock` with `base` mixed in; its instances can be copied and saved by their state dict, but not pickled."""
    return type(f"Sparse{stock.__name__}", (base, stock), {"__doc__": base.__doc__, "__module__": __name__})


def stock_class(module: SparseLayer) -> type[nn.Module]:
    """The class that `module` had before it became sparse."""
    return next(base for base in type(module).__mro__ if not issubclass(base, SparseLayer))

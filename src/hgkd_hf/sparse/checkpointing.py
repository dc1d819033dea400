"""Gradient checkpointing of stock networks, which transformers' CNNs do not bring themselves."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .context import active_backend, use_backend


class CheckpointedBlock:
    """Mixed into a block: with `gradient_checkpointing` it keeps its input only, and backward computes it anew.

    transformers' `gradient_checkpointing_enable` sets `gradient_checkpointing` and `_gradient_checkpointing_func`.
    """

    gradient_checkpointing = False

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The block's own forward; the recomputation sees the mask of the first."""
        block = super().forward
        if not (self.gradient_checkpointing and self.training):
            return block(*args, **kwargs)
        backend = active_backend()

        def compute(*args: Tensor) -> Tensor:
            with use_backend(backend):
                return block(*args, **kwargs)

        return self._gradient_checkpointing_func(compute, *args)


def checkpoint_blocks(encoder: nn.Module) -> nn.Module:
    """Let the blocks of a stock network be checkpointed, in place: the entries of its outermost lists of modules.

    Those are the stages of a ResNet or ConvNeXt and the residual blocks of a MobileNet. Only their classes change.
    """
    lists = (nn.ModuleList, nn.Sequential)
    outermost: list[str] = []
    for name, module in encoder.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, lists) and len(module) > 1 and not inside:
            outermost.append(name)
            for block in module:
                if any(True for _ in block.children()) and not isinstance(block, (GradientCheckpointingLayer, *lists)):
                    block.__class__ = _checkpointed_class(type(block))
    return encoder


def uncheckpoint_blocks(encoder: nn.Module) -> nn.Module:
    """Undo `checkpoint_blocks`, in place."""
    for module in encoder.modules():
        if isinstance(module, CheckpointedBlock):
            module.__class__ = type(module).__mro__[2]
            for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                module.__dict__.pop(name, None)
    return encoder


@cache
def _checkpointed_class(stock: type[nn.Module]) -> type[nn.Module]:
    return type(stock.__name__, (CheckpointedBlock, stock), {"__doc__": stock.__doc__, "__module__": __name__})

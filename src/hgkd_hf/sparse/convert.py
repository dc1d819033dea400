"""Turn a stock CNN into one that can run on visible cells, in place."""

from __future__ import annotations

from torch import nn

from .geometry import padding_before, pair
from .layers import (
    BLOCKS,
    SparseLayer,
    is_known_block,
    is_pointwise,
    sparse_base,
    sparse_class,
    stock_class,
)

LEFT_OUT = "hgkd_left_out"


def leave_out(module: nn.Module) -> None:
    """Let `sparsify` leave a module as it is, since the forward of its network never reaches it."""
    setattr(module, LEFT_OUT, True)


def sparsify(backbone: nn.Module) -> nn.Module:
    """Let the layers of a stock CNN compute on visible cells inside `visible(...)`.

    Only the classes of its layers change: parameters, state-dict keys and, outside `visible(...)`, every result stay
    those of the stock network. Calling it twice is harmless. Exact are then the feature maps, and what a pooling
    *module* makes of them (the mean over each image's visible positions, repeated for each of its cells by the backend
    "cells"); a mean taken in a network's own forward, as in the `pooler_output` of ConvNeXt, is not. What a forward
    does between its modules cannot be seen here: `check_exact` looks at that.

    Args:
        backbone: the network, changed in place; every module that mixes positions must be known here.

    Returns:
        The same object.

    Raises:
        ValueError: a module would carry information across the mask, or its windows do not fit the cells; the message
            names it. Nothing has been changed then.
    """
    modules = dict(backbone.named_modules())
    replacements = {}
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]] if name else None
        if parent in replacements or isinstance(parent, SparseLayer):
            continue  # part of a layer that is replaced as a whole, such as its activation
        elif isinstance(module, SparseLayer) or is_pointwise(module) or module.__dict__.get(LEFT_OUT):
            continue
        elif (base := sparse_base(module)) is not None:
            _check(name, module, parent, getattr(backbone, "config", None))
            replacements[module] = sparse_class(base, type(module))
        elif not _is_container(module):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) cannot be made exact on visible cells: "
                f"it may carry information across the mask; choose a student without it."
            )
    for module, replacement in replacements.items():
        module.__class__ = replacement
    return backbone


def to_dense(backbone: nn.Module) -> nn.Module:
    """Undo `sparsify`, in place: every layer is of its stock class again."""
    for module in backbone.modules():
        if isinstance(module, SparseLayer):
            module.__class__ = stock_class(module)
            module.__dict__.pop("ran_masked", None)
    return backbone


def _is_container(module: nn.Module) -> bool:
    """Whether `module` only calls its children, as far as can be seen, or is a block known to do little else."""
    if isinstance(module, (nn.Sequential, nn.ModuleList)) and not len(module):
        return True
    if is_known_block(module):
        return True
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(True for _ in module.children()) and not own


def _check(name: str, module: nn.Module, parent: nn.Module | None, config: object) -> None:
    """Refuse a layer of a known class whose settings are not exact under a mask."""

    def refuse(reason: str) -> None:
        raise ValueError(f"layer {name!r} ({type(module).__name__}) cannot be made exact on visible cells: {reason}")

    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        refuse(f"it pads with {module.padding_mode!r}, and only zeros are exact under a mask.")
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        refuse("it returns indices.")
    if isinstance(module, nn.ConstantPad2d) and (module.value != 0 or min(module.padding) < 0):
        refuse("only a padding with zeros is exact under a mask.")
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
        refuse(f"its outputs of size {module.output_size} belong to no cell.")
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        refuse("it normalises over positions as well as channels.")
    if isinstance(module, nn.Linear) and not (parent is not None and is_known_block(parent)):
        known = ", ".join(sorted(set().union(*BLOCKS.values())))
        refuse(f"a matrix over channels is only known to be one position's in {known}.")
    if getattr(module, "add_maxpool", False):
        refuse("it takes the maximum of a whole image, in which hidden positions would count as zeros.")
    if not is_pointwise(getattr(module, "act", nn.Identity())):
        refuse(f"its activation {type(module.act).__name__} is not known to keep zero at zero.")
    if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        _check_window(name, module, parent, config)


def _check_window(name: str, module: nn.Module, parent: nn.Module | None, config: object) -> None:
    siblings = parent.children() if parent is not None else ()
    pads = [layer.padding for layer in siblings if isinstance(layer, nn.ConstantPad2d)]
    paddings = [((0, 0), (0, 0)), *(((top, bottom), (left, right)) for left, right, top, bottom in pads)]
    if any(padding_before(module, padding) is not None for padding in paddings):
        return
    kernel, stride, dilation = map(pair, (module.kernel_size, module.stride, getattr(module, "dilation", 1)))
    most = tuple(d * (k - 1) for k, d in zip(kernel, dilation))
    least = tuple(max(reach - s + 1, 0) for reach, s in zip(most, stride))
    message = (
        f"layer {name!r} (kernel {kernel}, stride {stride}, padding {module.padding}, dilation {dilation}) does not "
        f"map a cell of s positions to s / stride: its padding, both sides together, must be {least} to {most}."
    )
    if getattr(config, "tf_padding", False):
        message += " The network pads in its own forward, as TensorFlow does: build it with tf_padding=False."
    raise ValueError(message)

"""Turn a stock CNN into one that can run on visible cells, in place."""

from __future__ import annotations

from torch import nn

from .layers import SparseBatchNorm2d, SparseConv2d, SparseGlobalAvgPool2d, SparseLayer, SparseMaxPool2d

# What computes every position by itself and keeps zero at zero, so that a mask passes through untouched.
POINTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Dropout,
)


def sparsify(backbone: nn.Module) -> nn.Module:
    """Let the layers of a stock CNN compute on visible cells inside `visible(...)`.

    Only the classes of its layers change: parameters, state-dict keys and, outside `visible(...)`, every result stay
    those of the stock network. Calling it twice is harmless.

    Args:
        backbone: the network, changed in place; every module that mixes positions must be known here.

    Returns:
        The same object.

    Raises:
        ValueError: a module would carry information across the mask, or its windows do not fit the cells; the message
            names it. Nothing has been changed then.
    """
    replacements = {}
    for name, module in backbone.named_modules():
        if isinstance(module, (SparseLayer, *POINTWISE)) or type(module).__module__ == "transformers.activations":
            continue
        sparse_class = _sparse_class(name, module)
        if sparse_class is not None:
            replacements[module] = sparse_class
        elif not _is_container(module):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) cannot be made exact on visible cells: "
                f"it may carry information across the mask; choose a student without it."
            )
    for module, sparse_class in replacements.items():
        module.__class__ = sparse_class
    return backbone


def to_dense(backbone: nn.Module) -> nn.Module:
    """Undo `sparsify`, in place: every layer is of its stock class again."""
    for module in backbone.modules():
        if isinstance(module, SparseLayer):
            module.__class__ = next(base for base in type(module).__bases__ if base is not SparseLayer)
    return backbone


def _is_container(module: nn.Module) -> bool:
    has_own_tensors = any(True for _ in module.parameters(recurse=False)) or any(
        True for _ in module.buffers(recurse=False)
    )
    return any(True for _ in module.children()) and not has_own_tensors


def _sparse_class(name: str, module: nn.Module) -> type[SparseLayer] | None:
    if type(module) is nn.Conv2d:
        if module.padding_mode != "zeros":
            raise ValueError(
                f"convolution {name!r} pads with {module.padding_mode!r}: only zeros are exact under a mask."
            )
        _check_window(name, module.kernel_size, module.stride, module.padding, module.dilation)
        return SparseConv2d
    if type(module) is nn.BatchNorm2d:
        return SparseBatchNorm2d
    if type(module) is nn.MaxPool2d and not module.return_indices:
        pairs = (
            value if isinstance(value, tuple) else (value, value)
            for value in (module.kernel_size, module.stride, module.padding, module.dilation)
        )
        _check_window(name, *pairs)
        return SparseMaxPool2d
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return SparseGlobalAvgPool2d
    return None


def _check_window(name: str, kernels: tuple, strides: tuple, paddings: tuple | str, dilations: tuple) -> None:
    """Outputs of a cell must be its own: H / stride outputs, the first window starting at most `kernel` before it."""
    if isinstance(paddings, str):
        raise ValueError(f"layer {name!r} has padding={paddings!r}: give its padding in pixels.")
    for kernel, stride, padding, dilation in zip(kernels, strides, paddings, dilations):
        reach = dilation * (kernel - 1)
        if not reach - (stride - 1) <= 2 * padding <= reach:
            raise ValueError(
                f"layer {name!r} (kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}) does not "
                f"map a cell of s pixels to s / {stride}: its padding must be between "
                f"{-(-max(reach - stride + 1, 0) // 2)} and {reach // 2}."
            )

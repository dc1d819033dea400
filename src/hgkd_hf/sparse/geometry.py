"""How the sliding windows of a layer lie on the cells: what every backend and `sparsify` must agree on."""

from __future__ import annotations

from torch import Tensor, nn

Pair = tuple[int, int]


def pair(value: int | Pair) -> Pair:
    """A layer's kernel size, stride, ... as (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else tuple(value)


def zero_padding(x: Tensor) -> tuple[Pair, Pair]:
    """What a padding layer has promised to the layer that takes `x` next: ((top, bottom), (left, right)) zeros."""
    return getattr(x, "zero_padding", ((0, 0), (0, 0)))


def promise_zero_padding(layer: nn.ConstantPad2d, x: Tensor) -> Tensor:
    """Note on `x`, a new tensor, that `layer` pads it."""
    left, right, top, bottom = layer.padding
    x.zero_padding = ((top, bottom), (left, right))
    return x


def pads_with_zeros(layer: nn.Module, x: Tensor) -> bool:
    """Whether a max pooling sees zeros around the image, not nothing: padding by another layer or by BiT's child."""
    return hasattr(x, "zero_padding") or hasattr(getattr(layer, "pad", None), "kernel_size")


def padding_before(layer: nn.Module, padded: tuple[Pair, Pair] = ((0, 0), (0, 0))) -> Pair | None:
    """How far (rows, columns) the first window of a convolution or pooling starts before the map.

    Args:
        layer: has `kernel_size`, `stride` and `padding`, as numbers or "same" or "valid"; maybe `dilation` and
            `ceil_mode`, and maybe TensorFlow's "SAME" padding as a child `pad` (transformers' BiT).
        padded: the zeros that a layer before it adds, see `zero_padding`.

    Returns:
        None if an input of n * stride positions would not have n outputs, so that outputs belong to no cell.
    """
    starts = []
    geometry = (layer.kernel_size, layer.stride, getattr(layer, "dilation", 1))
    for axis, (kernel, stride, dilation) in enumerate(zip(*map(pair, geometry))):
        reach = dilation * (kernel - 1)
        if layer.padding == "valid":
            before = after = 0
        elif layer.padding == "same":
            before, after = reach // 2, reach - reach // 2
        else:
            before = after = pair(layer.padding)[axis]
        if hasattr(getattr(layer, "pad", None), "kernel_size"):
            same = max(reach + 1 - stride, 0)
            before, after = before + same // 2, after + same - same // 2
        if isinstance(layer, nn.MaxPool2d) and before > 0 and sum(padded[axis]) > 0:
            return None  # "nothing" and zeros around one image
        before, after = before + padded[axis][0], after + padded[axis][1]
        longest = reach + 1 - stride if getattr(layer, "ceil_mode", False) else reach
        if not longest - stride < before + after <= longest:
            return None
        starts.append(before)
    return tuple(starts)


def checked_padding_before(layer: nn.Module, x: Tensor) -> Pair:
    """`padding_before` for the map `x`.

    Raises:
        ValueError: the windows do not fit the cells.
    """
    before = padding_before(layer, zero_padding(x))
    if before is None:
        raise ValueError(f"{layer} with {zero_padding(x)} zeros before it does not map a cell to whole outputs.")
    return before


def check_stride(layer: nn.Module, block: Pair, cell: Pair | None) -> None:
    """The outputs of a cell must be its own.

    Args:
        layer: a convolution or pooling.
        block: the side of a cell, in positions of the layer's input.
        cell: the side of a cell in pixels of the image, None if the image is not known.

    Raises:
        ValueError: the stride does not divide the block, and the message names cell sizes that go further; or the
            layer is a maximum over the whole image, in which hidden positions would count as zeros.
    """
    if cell and isinstance(layer, nn.MaxPool2d) and max(pair(layer.kernel_size)) > max(cell):
        raise ValueError(
            f"{layer} takes the maximum of a whole image, in which hidden positions would count as zeros."
        )
    for side, stride, pixels in zip(block, pair(layer.stride), cell or block):
        if side % stride:
            total = pixels // side * stride
            nearest = sorted({max(pixels // total, 1) * total, (pixels // total + 1) * total})
            raise ValueError(
                f"cell_size {pixels} does not fit this network: at {layer} a cell is {side} positions wide, which "
                f"stride {stride} does not divide. Choose a multiple of the network's total stride, which is at least "
                f"{total}: {' or '.join(map(str, nearest))}."
            )


def covers(layer: nn.AvgPool2d, size: Pair) -> bool:
    """Whether a pooling window takes in a whole map of `size` (EfficientNet's pooler), which makes it global."""
    kernel = pair(layer.kernel_size)
    return pair(layer.padding) == (0, 0) and layer.ceil_mode and kernel[0] >= size[0] and kernel[1] >= size[1]

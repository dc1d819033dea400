"""Triton kernels of convolutions over index tables: what a tap reads is gathered into the matrix product itself.

Imported only where the backend "triton" runs. float16, bfloat16 and float32; sums are float32, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, INNER = 64, 64, 32  # of a tile; not tuned on any device
PARTS = 32  # of the rows, that the weight's gradient is summed in


@triton.jit
def _product(
    x, weight, table, y, inputs, outputs, channels, columns,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in range(TAPS):
        source = tl.load(table + row * TAPS + tap, mask=row < outputs, other=inputs)
        exists = source < inputs
        if tl.max(exists.to(tl.int32), 0) > 0:
            for start in range(0, channels, INNER):
                inner = start + tl.arange(0, INNER)
                known = inner < channels
                place = source.to(tl.int64)[:, None] * channels + inner[None, :]
                values = tl.load(x + place, mask=exists[:, None] & known[None, :], other=0.0)
                place = (tap * channels + inner)[:, None] * columns + column[None, :]
                factors = tl.load(weight + place, mask=known[:, None] & (column < columns)[None, :], other=0.0)
                total += tl.dot(values, factors, input_precision="ieee")
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(row < outputs)[:, None] & (column < columns)[None, :])


@triton.jit
def _weight_gradient(
    x, grad, table, parts, inputs, outputs, channels, columns, rows_of_part,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, COLUMNS)
    tap, channel = tl.program_id(0) // blocks, tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    column, part = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(2)
    total = tl.zeros((COLUMNS, COLUMNS), tl.float32)
    for start in range(0, rows_of_part, INNER):
        row = part * rows_of_part + start + tl.arange(0, INNER)
        known = (start + tl.arange(0, INNER) < rows_of_part) & (row < outputs)
        source = tl.load(table + row * TAPS + tap, mask=known, other=inputs)
        exists = source < inputs
        if tl.max(exists.to(tl.int32), 0) > 0:
            place = source.to(tl.int64)[None, :] * channels + channel[:, None]
            values = tl.load(x + place, mask=exists[None, :] & (channel < channels)[:, None], other=0.0)
            place = row.to(tl.int64)[:, None] * columns + column[None, :]
            grads = tl.load(grad + place, mask=exists[:, None] & (column < columns)[None, :], other=0.0)
            total += tl.dot(values, grads, input_precision="ieee")
    place = ((part * TAPS + tap) * channels + channel).to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(parts + place, total, mask=(channel < channels)[:, None] & (column < columns)[None, :])


def product(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Row m of the result (M, O) is the sum over taps t of `x[table[m, t]] @ weight[t]`.

    Args:
        x: (N, I), contiguous.
        weight: (taps, I, O), contiguous, of the same dtype.
        table: (M, taps) int32, N where nothing is read.
    """
    (taps, channels, columns), outputs = weight.shape, len(table)
    y = x.new_empty(outputs, columns)
    grid = triton.cdiv(outputs, ROWS), triton.cdiv(columns, COLUMNS)
    _product[grid](x, weight, table, y, len(x), outputs, channels, columns, taps, ROWS, COLUMNS, INNER)
    return y


def weight_gradient(x: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    """The sums over m of the outer products of `x[table[m, t]]` and `grad[m]`: (taps, I, O) float32."""
    (outputs, taps), channels, columns = table.shape, x.shape[1], grad.shape[1]
    count = max(1, min(PARTS, triton.cdiv(outputs, ROWS)))
    parts = torch.empty(count, taps, channels, columns, dtype=torch.float32, device=x.device)
    grid = taps * triton.cdiv(channels, COLUMNS), triton.cdiv(columns, COLUMNS), count
    sizes = len(x), outputs, channels, columns, triton.cdiv(outputs, count)
    _weight_gradient[grid](x, grad, table, parts, *sizes, taps, ROWS, COLUMNS, INNER)
    return parts.sum(0)

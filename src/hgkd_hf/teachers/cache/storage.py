"""Feature maps as rows of a column: as they are, in half precision, or as bytes with a scale for each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from .info import Storage

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_LARGEST = 127
_SMALLEST = 2.0**-24  # float16 above 0


def encode(maps: Tensor, storage: Storage) -> tuple[Tensor, Tensor | None]:
    """Maps (B, C, h, w) float32 to values (B, C * h * w) and, for int8, scales (B, C) float16.

    A channel of an image is `scale * value`, with the scale such that its largest magnitude is 127.

    Raises:
        ValueError: a value is not finite, or too large for the storage.
    """
    scale = None
    if storage == "int8":
        scale = (maps.abs().amax((2, 3)) / _LARGEST).half()
        # Divided by the scale as it is stored, whose own rounding then costs nothing.
        steps = maps / scale.float()[..., None, None].clamp(min=_SMALLEST)
        values = steps.round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    else:
        values = maps.to(_DTYPES[storage])
    written = values if scale is None else scale
    if not maps.isfinite().all() or not written.isfinite().all():
        raise ValueError(
            f"the teacher gives features that are not finite as {storage}: use --teacher_dtype float32 or bfloat16, "
            "and --storage float32."
        )
    return values.flatten(1), scale


def decode(values: Tensor, scale: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """What `encode` made of one image, values (C * h * w,) and scales (C,), as a map (C, h, w) float32."""
    maps = values.view(-1, *grid).float()
    return maps if scale is None else maps * scale.float().view(-1, 1, 1)

"""Static int8 quantization of an ONNX student, calibrated on images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from .programs import INPUT


def quantize_int8(path: str | Path, quantized: str | Path, batches: Iterable[Tensor]) -> Path:
    """Write a student whose weights and activations are int8 (QDQ format, weights per channel).

    Ranges of activations are the least and greatest values that the calibration images give.

    Args:
        path: the float32 ONNX file.
        quantized: the file to write.
        batches: calibration images, (B, 3, H, W) each, prepared as for inference; a hundred images are enough.

    Raises:
        ValueError: there are no calibration images.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        # Fuses BatchNorm into convolutions, so that each pair is quantized as one.
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        reader = _Batches(batches)
        root = logging.getLogger()
        level, _ = root.level, root.setLevel(logging.ERROR)  # it logs on the root logger that QDQ models grow
        try:
            quantize_static(
                str(prepared),
                str(quantized),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
    return Path(quantized)


class _Batches:
    """What onnxruntime's calibration asks for images, one batch after the other."""

    def __init__(self, batches: Iterable[Tensor]):
        first, self._rest = None, iter(batches)
        first = next(self._rest, None)
        if first is None:
            raise ValueError("there are no calibration images: raise --calibration_images above 0.")
        self._first = first

    def get_next(self):
        batch, self._first = self._first if self._first is not None else next(self._rest, None), None
        return None if batch is None else {INPUT: batch.contiguous().numpy()}

"""Static int8 quantization of an ONNX student, calibrated on images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from .programs import INPUT, quiet


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

    inputs = ({INPUT: batch.contiguous().numpy()} for batch in batches)
    first = next(inputs, None)
    if first is None:
        raise ValueError("there are no calibration images: raise --calibration_images above 0.")
    inputs = chain([first], inputs)
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))  # all that onnxruntime asks for
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        # Fuses BatchNorm into convolutions, so that each pair is quantized as one.
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        with quiet(None):  # it logs on the root logger that QDQ models grow
            quantize_static(
                str(prepared),
                str(quantized),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
    return Path(quantized)

"""A finished student as a program: ONNX, int8, `torch.export`, and what each costs. Needs the extra `export`."""

from .int8 import quantize_int8
from .latency import median_latencies
from .programs import (
    OnnxStudent,
    StudentOutputs,
    check_onnx,
    export_onnx,
    export_program,
    load_student,
    load_transform,
)

__all__ = [
    "OnnxStudent",
    "StudentOutputs",
    "check_onnx",
    "export_onnx",
    "export_program",
    "load_student",
    "load_transform",
    "median_latencies",
    "quantize_int8",
]

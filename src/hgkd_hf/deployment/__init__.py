"""A finished student as a program: ONNX, int8, `torch.export`, and what each costs. Needs the extra `export`."""

from .check import OnnxStudent, check_onnx
from .int8 import quantize_int8
from .kinds import KINDS, Kind, kind_of, load_student, load_transform
from .latency import median_latencies
from .programs import StudentOutputs, export_onnx, export_program

__all__ = [
    "KINDS",
    "Kind",
    "OnnxStudent",
    "StudentOutputs",
    "check_onnx",
    "export_onnx",
    "export_program",
    "kind_of",
    "load_student",
    "load_transform",
    "median_latencies",
    "quantize_int8",
]

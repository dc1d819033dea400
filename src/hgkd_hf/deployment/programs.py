"""A stock student as `torch.export` program and as ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel
from transformers.models.bit.modeling_bit import DynamicPad2d

from ..students.features import pooled_features
from .kinds import kind_of

INPUT = "pixel_values"
OPSET = 20  # read by onnxruntime since 1.17


class StudentOutputs(nn.Module):
    """Plain tensors out of a stock model, which is what an exporter wants.

    Attributes:
        kind: of the model; `features` (B, D) of an encoder is what `hgkd_hf.evaluation.pooled_features` gives.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model.eval()
        self.kind = kind_of(type(model).__name__)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """`pixel_values` (B, 3, H, W) -> the outputs that `kind` names."""
        outputs = self.model(pixel_values)
        if "features" in self.kind.outputs:
            return outputs.last_hidden_state, pooled_features(lambda _: outputs, pixel_values)
        return tuple(outputs[name] for name in self.kind.outputs)


def export_program(model: PreTrainedModel, image_size: Sequence[int], dynamic_size: bool = True) -> ExportedProgram:
    """The student as one graph of ATen operations.

    Args:
        model: a stock model of `KINDS`.
        image_size: (height, width) in pixels of the example; with `dynamic_size` any other size runs too, where the
            kind of model allows it.
        dynamic_size: False fixes the size, which networks need whose padding is computed in Python.

    Raises:
        ValueError: the network cannot be exported; the sentence has the exporter's reason. Or it pads by the image's
            size (BiT as published) and `dynamic_size` is set.
    """
    outputs = StudentOutputs(model)
    dynamic_size = dynamic_size and outputs.kind.any_size
    if dynamic_size and any(isinstance(module, DynamicPad2d) for module in model.modules()):
        # Each layer's size is then a formula around the one before, and the exporter's algebra does not end.
        raise ValueError(
            f"{type(model).__name__} pads each layer by a rule on the image's size, which cannot be exported for any "
            "size: try a fixed image size (--fixed_size), or a network built with global_padding=None."
        )
    sizes = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic_size else {}
    sizes |= {0: Dim.DYNAMIC} if outputs.kind.any_batch else {}
    # Two images: a batch of one would be taken for a constant. As contiguous as those that others feed.
    batch = 2 if outputs.kind.any_batch else 1
    example = torch.zeros(batch, getattr(model.config, "num_channels", 3), *image_size)
    try:
        with torch.no_grad():
            return torch.export.export(outputs, (example,), dynamic_shapes={INPUT: sizes}, strict=False)
    except Exception as error:  # the exporter raises whatever its parts raise
        reason = " ".join(str(error).split())[:300]
        advice = " Try a fixed image size: --fixed_size." if dynamic_size else ""
        raise ValueError(f"{type(model).__name__} cannot be exported: {reason}{advice}") from error


def export_onnx(program: ExportedProgram, path: str | Path, outputs: Sequence[str]) -> Path:
    """Write an exported student as one ONNX file; its input is `pixel_values`, its outputs are named.

    Args:
        program: from `export_program`.
        path: the file; its folder is created.
        outputs: the names, of the model's `Kind`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet("torch.onnx"):  # it remarks on packages that are not there
        onnx_program = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=list(outputs), opset_version=OPSET, verbose=False
        )
        onnx_program.save(path, external_data=False)
    return path


@contextmanager
def quiet(name: str | None) -> Iterator[None]:
    """Without warnings, and without what the logger of this name (None: the root) has to say below an error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

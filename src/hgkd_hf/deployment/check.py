"""An ONNX student at work, and whether it computes what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from .programs import INPUT, StudentOutputs

TOLERANCE = 1e-4


class OnnxStudent:
    """An ONNX student on the CPU: called with (B, 3, H, W) it gives its last output, features or logits (B, D).

    Args:
        path: the ONNX file, or its bytes.
        threads: of one operation; None: onnxruntime's choice, all cores.
    """

    def __init__(self, path: str | Path | bytes, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def outputs(self, pixel_values: Tensor) -> dict[str, np.ndarray]:
        """All outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {INPUT: pixel_values.contiguous().numpy()})))

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """The last output as a tensor."""
        return torch.from_numpy(list(self.outputs(pixel_values).values())[-1])


@torch.no_grad()
def check_onnx(
    path: str | Path, model: PreTrainedModel, shapes: Sequence[Sequence[int]], tolerance: float = TOLERANCE
) -> float:
    """Compare an ONNX file with its model on random images: the greatest absolute difference of any output.

    A detector decodes the places of highest score. Where scores are equal but for rounding, either runtime may choose
    others: the file's choice is compared by its scores, and what is decoded from it with what PyTorch decodes from it.

    Args:
        path: the ONNX file.
        model: what it was exported from.
        shapes: of the batches to compare, (B, H, W).
        tolerance: the greatest difference that is accepted.

    Raises:
        ValueError: a difference is greater.
    """
    stock = StudentOutputs(model)
    run = (_run_with_choice if stock.kind.detects else _run)(path, stock)
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch, *size in shapes:
        images = torch.randn(batch, getattr(model.config, "num_channels", 3), *size, generator=generator)
        for name, (wanted, given) in run(images).items():
            difference = (wanted - given).abs().max().item()
            if not difference <= tolerance:
                raise ValueError(
                    f"{path}: output {name!r} of {batch} images of {size[0]}x{size[1]} px differs from PyTorch's by "
                    f"{difference:.2g}, more than {tolerance:.0e}: do not use this file, and report it."
                )
            worst = max(worst, difference)
    return worst


Comparison = Callable[[Tensor], dict[str, tuple[Tensor, Tensor]]]  # images -> what PyTorch and the file give, by name


def _run(path: str | Path, stock: StudentOutputs) -> Comparison:
    student = OnnxStudent(path)

    def run(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        given = map(torch.from_numpy, student.outputs(images).values())
        return dict(zip(stock.kind.outputs, zip(stock(images), given)))

    return run


def _run_with_choice(path: str | Path, stock: StudentOutputs) -> Comparison:
    """With a further output of the file: the places that it chose, (B, queries)."""
    import onnx

    file = onnx.load(path)
    choice = next(node.output[1] for node in file.graph.node if node.op_type == "TopK")
    file.graph.output.append(onnx.helper.make_tensor_value_info(choice, onnx.TensorProto.INT64, None))
    student = OnnxStudent(file.SerializeToString())

    def run(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        *given, chosen = map(torch.from_numpy, student.outputs(images).values())
        scores = stock.model(images).enc_outputs_class.amax(-1)
        best = scores.topk(chosen.shape[1]).values
        ordered = scores.gather(1, chosen).sort(descending=True).values
        with mock.patch.object(torch, "topk", lambda scores, k, dim: (scores.gather(dim, chosen), chosen)):
            wanted = stock(images)
        return {"scores of the chosen places": (best, ordered)} | dict(zip(stock.kind.outputs, zip(wanted, given)))

    return run

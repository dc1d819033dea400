"""A stock student as `torch.export` program and as ONNX, for any batch and image size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers.models.bit.modeling_bit import DynamicPad2d

from ..data import ImageTransform
from ..students.features import pooled_features

INPUT = "pixel_values"
OPSET = 20  # read by onnxruntime since 1.17
TOLERANCE = 1e-4


def load_student(name_or_path: str | Path, revision: str | None = None) -> PreTrainedModel:
    """A student as its config says: with its classifier, if it has one; in eval mode, float32.

    Args:
        name_or_path: folder or Hub id.
        revision: branch, tag or commit of the Hub id.
    """
    config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    classifies = any("ForImageClassification" in name for name in config.architectures or ())
    kind = AutoModelForImageClassification if classifies else AutoModel
    settings = {"revision": revision, "use_safetensors": True, "dtype": torch.float32}
    return kind.from_pretrained(name_or_path, trust_remote_code=False, **settings).eval()


def load_transform(name_or_path: str | Path, revision: str | None = None, size: int | None = None) -> ImageTransform:
    """What prepares an image as the student's image processor does: centred crop, normalisation.

    Args:
        name_or_path: folder or Hub id.
        revision: branch, tag or commit of the Hub id.
        size: side of the crop in pixels; None: the processor's.
    """
    processor = AutoImageProcessor.from_pretrained(name_or_path, revision=revision, backend="pil")
    crop = getattr(processor, "crop_size", None) or processor.size
    sides = (crop["height"], crop["width"]) if "height" in crop else (crop["shortest_edge"],) * 2
    return ImageTransform(
        image_size=size or sides,
        train=False,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
        crop_fraction=min(1.0, max(sides) / processor.size.get("shortest_edge", max(sides))),
    )


class StudentOutputs(nn.Module):
    """Plain tensors out of a stock model, which is what an exporter wants.

    Attributes:
        output_names: ("logits",) of a classifier, else ("last_hidden_state", "features"); `features` (B, D) is what
            `hgkd_hf.evaluation.pooled_features` gives. The last of them is what accuracy is measured on.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model.eval()
        classifies = type(model).__name__.endswith("ForImageClassification")
        self.output_names = ("logits",) if classifies else ("last_hidden_state", "features")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """`pixel_values` (B, 3, H, W) -> the outputs of `output_names`."""
        outputs = self.model(pixel_values)
        if self.output_names == ("logits",):
            return (outputs.logits,)
        return outputs.last_hidden_state, pooled_features(lambda _: outputs, pixel_values)


def export_program(model: PreTrainedModel, image_size: Sequence[int], dynamic_size: bool = True) -> ExportedProgram:
    """The student as one graph of ATen operations.

    Args:
        model: a stock model, or a classifier.
        image_size: (height, width) in pixels of the example; with `dynamic_size` any other size runs too.
        dynamic_size: False fixes the size, which networks need whose padding is computed in Python.

    Raises:
        ValueError: the network cannot be exported; the sentence has the exporter's reason. Or it pads by the image's
            size (BiT as published) and `dynamic_size` is set.
    """
    if dynamic_size and any(isinstance(module, DynamicPad2d) for module in model.modules()):
        # Each layer's size is then a formula around the one before, and the exporter's algebra does not end.
        raise ValueError(
            f"{type(model).__name__} pads each layer by a rule on the image's size, which cannot be exported for any "
            "size: try a fixed image size (--fixed_size), or a network built with global_padding=None."
        )
    sizes = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic_size else {}
    # Two images: a batch of one would be taken for a constant. As contiguous as those that others feed.
    example = torch.zeros(2, getattr(model.config, "num_channels", 3), *image_size)
    try:
        with torch.no_grad():
            return torch.export.export(
                StudentOutputs(model), (example,), dynamic_shapes={INPUT: {0: Dim.DYNAMIC, **sizes}}, strict=False
            )
    except Exception as error:  # the exporter raises whatever its parts raise
        reason = " ".join(str(error).split())[:300]
        advice = " Try a fixed image size: --fixed_size." if dynamic_size else ""
        raise ValueError(f"{type(model).__name__} cannot be exported: {reason}{advice}") from error


def export_onnx(program: ExportedProgram, path: str | Path) -> Path:
    """Write an exported student as one ONNX file; its input is `pixel_values`, its outputs are named.

    Args:
        program: from `export_program`.
        path: the file; its folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["logits"] if len(program.graph_signature.user_outputs) == 1 else ["last_hidden_state", "features"]
    with _quiet():
        onnx_program = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=names, opset_version=OPSET, verbose=False
        )
        onnx_program.save(path, external_data=False)
    return path


class OnnxStudent:
    """An ONNX student on the CPU: called with (B, 3, H, W) it gives its last output, features or logits (B, D).

    Args:
        path: the ONNX file.
        threads: of one operation; None: onnxruntime's choice, all cores.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
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

    Args:
        path: the ONNX file.
        model: what it was exported from.
        shapes: of the batches to compare, (B, H, W).
        tolerance: the greatest difference that is accepted.

    Raises:
        ValueError: a difference is greater.
    """
    student, stock = OnnxStudent(path), StudentOutputs(model)
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch, *size in shapes:
        images = torch.randn(batch, getattr(model.config, "num_channels", 3), *size, generator=generator)
        for name, wanted, given in zip(stock.output_names, stock(images), student.outputs(images).values()):
            difference = float(np.abs(wanted.numpy() - given).max())
            if not difference <= tolerance:
                raise ValueError(
                    f"{path}: output {name!r} of {batch} images of {size[0]}x{size[1]} px differs from PyTorch's by "
                    f"{difference:.2g}, more than {tolerance:.0e}: do not use this file, and report it."
                )
            worst = max(worst, difference)
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""The publishable folder of a trained student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import BitImageProcessorPil, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import CONFIG_NAME

from ..checkpoints.whole_folders import written_aside
from ..methods.base.distiller import Distiller
from ..students.sparse_unet import SparseUNetForImageClassification, SparseUNetModel
from .privacy import public_names

STUDENT_SUBFOLDER = "sparse_unet"
_EXTENDED = SparseUNetModel | SparseUNetForImageClassification


def student_image_processor(
    image_size: int | Sequence[int],
    image_mean: Sequence[float],
    image_std: Sequence[float],
    crop_fraction: float = 1.0,
) -> BaseImageProcessor:
    """The stock processor that prepares images as evaluation does: short side, centre crop, normalisation.

    Args:
        image_size: of the crop in pixels, side or (height, width).
        image_mean, image_std: of the channels, for pixels in [0, 1].
        crop_fraction: share of the resized short side that the crop keeps.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return BitImageProcessorPil(
        size={"shortest_edge": round(max(height, width) / crop_fraction)},
        crop_size={"height": height, "width": width},
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def stock_student(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model of a trained student, or of the distiller around it."""
    return model.to_native() if isinstance(model, Distiller | _EXTENDED) else model


def extended_student(model: PreTrainedModel) -> PreTrainedModel | None:
    """The student with what its stock model leaves out, if anything: the decoder of a UNet."""
    if isinstance(model, Distiller):
        return model.extended_student
    return model if isinstance(model, _EXTENDED) else None


def export_student(
    model: PreTrainedModel, folder: str | Path, image_processor: BaseImageProcessor, readme: str | None = None
) -> Path:
    """Write a folder that any transformers installation loads.

    At its root stands the student as a stock checkpoint with its image processor, so that `AutoModel`,
    `AutoModelForImageClassification` and pipelines take it without this package. Of a UNet student that is the
    encoder; `sparse_unet/` then holds the whole student with decoder, for those who continue pre-training or keep the
    decoder.

    Args:
        model: a trained student, or the distiller around it.
        folder: created if need be; files of the same names are replaced.
        image_processor: of the student.
        readme: text of the folder's README.md; None leaves that file alone.
    """
    student = extended_student(model)
    with written_aside(Path(folder)) as aside:
        save_public(stock_student(model), aside, image_processor)
        if student is not None:
            save_public(student, aside / STUDENT_SUBFOLDER, image_processor)
        if readme is not None:
            (aside / "README.md").write_text(readme, encoding="utf-8")
    return Path(folder)


def save_public(model: PreTrainedModel, folder: Path, image_processor: BaseImageProcessor) -> None:
    """`save_pretrained` of both, without the places that parts of the model were loaded from, which configs name.

    Args:
        model, image_processor: to save.
        folder: created if need be; files of the same names are replaced.
    """
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    path = folder / CONFIG_NAME
    config = public_names(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

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
        stock_student(model).save_pretrained(aside)
        image_processor.save_pretrained(aside)
        if student is not None:
            student.save_pretrained(aside / STUDENT_SUBFOLDER)
            image_processor.save_pretrained(aside / STUDENT_SUBFOLDER)
        for config in aside.rglob(CONFIG_NAME):  # of which nested ones name the folder that they were read from
            content = public_names(json.loads(config.read_text(encoding="utf-8")))
            config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if readme is not None:
            (aside / "README.md").write_text(readme, encoding="utf-8")
    return Path(folder)

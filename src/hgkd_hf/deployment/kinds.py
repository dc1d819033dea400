"""What can be exported: encoders, and models of transformers with a head; loaded as their configs say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

from ..data import ImageTransform


@dataclass(frozen=True)
class Kind:
    """What a stock model of one kind computes, and for which inputs its program runs.

    Attributes:
        noun: what it is called, in the plural.
        head: what the names of its classes hold; None: they name no task.
        auto_class: that loads it.
        outputs: their names; accuracy is measured on the last.
        any_size: whether its program can take images of any size. Heads that pool to a grid or lay anchors do so for
            the size that they are exported with.
        any_batch: likewise for batches.
    """

    noun: str
    head: str | None
    auto_class: type
    outputs: tuple[str, ...]
    any_size: bool = True
    any_batch: bool = True

    @property
    def detects(self) -> bool:
        """Whether the outputs are boxes, in no order that means anything."""
        return "pred_boxes" in self.outputs


_TASK = re.compile("For[A-Z]")  # in the names of classes with a head; PoolFormerModel has none

KINDS = (
    Kind("encoders", None, AutoModel, ("last_hidden_state", "features")),
    Kind("classifiers", "ForImageClassification", AutoModelForImageClassification, ("logits",)),
    Kind("segmenters", "ForSemanticSegmentation", AutoModelForSemanticSegmentation, ("logits",), any_size=False),
    Kind(
        "RT-DETR detectors",
        "RTDetrForObjectDetection",
        AutoModelForObjectDetection,
        ("logits", "pred_boxes"),
        any_size=False,
        any_batch=False,
    ),
)


def kind_of(architecture: str) -> Kind:
    """The kind of a model's class.

    Raises:
        ValueError: there is no program of such models; the sentence says of which there are.
    """
    for kind in KINDS:
        if not _TASK.search(architecture) if kind.head is None else kind.head in architecture:
            return kind
    nouns = ", ".join(kind.noun for kind in KINDS)
    raise ValueError(f"{architecture} cannot be exported: there are programs of {nouns}.")


def load_student(name_or_path: str | Path, revision: str | None = None) -> PreTrainedModel:
    """A student as its config says: with its head, if it has one; in eval mode, float32.

    Args:
        name_or_path: folder or Hub id.
        revision: branch, tag or commit of the Hub id.

    Raises:
        ValueError: it is of no kind that can be exported.
    """
    config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    kind = kind_of((config.architectures or [""])[0])
    settings = {"revision": revision, "use_safetensors": True, "dtype": torch.float32}
    return kind.auto_class.from_pretrained(name_or_path, trust_remote_code=False, **settings).eval()


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

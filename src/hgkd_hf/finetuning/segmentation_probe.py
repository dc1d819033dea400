"""The linear protocols on a dataset with masks or boxes: what frozen maps hold for every place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..evaluation import best_device
from ..evaluation.frozen import load_maps
from ..evaluation.linear_segmentation import (
    SegmentationProbeSettings,
    evaluate_segmentation_probe,
    extract_maps,
    fit_segmentation_probe,
)
from .dense import DenseTask
from .detection import ObjectDetection, areas
from .masks import IGNORED
from .segmentation import SemanticSegmentation


@dataclass
class MaskProbe(SemanticSegmentation):
    """The classes of a dataset's masks."""

    metric: ClassVar[str] = "linear_segmentation"

    @property
    def map_names(self) -> tuple[str, ...]:
        """What the class maps of the samples count."""
        return self.names


@dataclass
class BoxProbe(ObjectDetection):
    """The insides of a dataset's boxes as class maps; where boxes overlap, that of the smaller one."""

    metric: ClassVar[str] = "linear_boxes"

    def check(self) -> None:
        """Without what a detector needs: none is trained."""
        DenseTask.check(self)

    @property
    def map_names(self) -> tuple[str, ...]:
        """The place outside of all boxes, and their classes."""
        return ("background", *self.names)

    def eval_sample(self, target: tuple[Tensor, Tensor], image: Image.Image) -> dict[str, Any]:
        """`labels` (H, W) int64 of the image's size: 0 outside, 1 more than the class inside.

        Args:
            target: boxes (N, 4) x1, y1, x2, y2 in pixels of the image, and classes (N,) int64.
            image: the upright image.
        """
        boxes, classes = target
        labels = torch.zeros(image.height, image.width, dtype=torch.int64)
        for index in areas(boxes).argsort(descending=True).tolist():
            left, top, right, bottom = boxes[index].round().int().tolist()
            labels[top:bottom, left:right] = 1 + classes[index]
        return {"labels": labels}


def probe_maps(
    task: MaskProbe | BoxProbe, settings: SegmentationProbeSettings, batch_size: int = 16, num_workers: int = 0
) -> tuple[dict[str, float | None], tuple[int, int]]:
    """Fit a linear probe on the frozen maps of `task.model`, on `task.split`, and measure it on `task.eval_split`.

    Args:
        task: the checkpoint, the dataset, its classes and the size that images are resized to.
        settings: of the probe.
        batch_size, num_workers: of the loaders.

    Returns:
        `linear_segmentation_miou` or `linear_boxes_miou`, and the IoU of each class, None where it is nowhere; and
        the numbers of images of both splits that could be used.

    Raises:
        ValueError: as `DenseTask.samples` and `load_maps`.
    """
    names = task.map_names
    train, test = task.samples(task.source, False, 0, None), task.evaluation_data()
    device = best_device()
    maps_of = load_maps(task.model, task.model_revision, task.size, *task.normalisation)

    def batches(dataset: Dataset) -> DataLoader:
        return DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=task.collate)

    maps = extract_maps(maps_of, batches(train), len(train), device)
    probe = fit_segmentation_probe(maps, len(names), IGNORED, settings, device)
    mean, per_class = evaluate_segmentation_probe(probe, maps_of, batches(test), len(names), IGNORED, device)
    values = {"miou": mean} | {f"iou_{name}": value for name, value in zip(names, per_class)}
    metrics = {f"{task.metric}_{name}": None if math.isnan(x) else x for name, x in values.items()}
    return metrics, (len(maps), test.num_usable)

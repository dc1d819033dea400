"""The linear segmentation protocol on a dataset with masks: what frozen maps hold for every place."""

from __future__ import annotations

import math

from torch.utils.data import DataLoader, Dataset

from ..evaluation import best_device
from ..evaluation.frozen import load_maps
from ..evaluation.linear_segmentation import (
    SegmentationProbeSettings,
    evaluate_segmentation_probe,
    extract_maps,
    fit_segmentation_probe,
)
from .masks import IGNORED
from .segmentation import SemanticSegmentation


def probe_segmentation(
    task: SemanticSegmentation, settings: SegmentationProbeSettings, batch_size: int = 16, num_workers: int = 0
) -> tuple[dict[str, float | None], tuple[int, int]]:
    """Fit a linear probe on the frozen maps of `task.model`, on `task.split`, and measure it on `task.eval_split`.

    Args:
        task: the checkpoint, the dataset, its classes and the size that images are resized to.
        settings: of the probe.
        batch_size, num_workers: of the loaders.

    Returns:
        `linear_segmentation_miou` and the IoU of each class, None where it is nowhere; and the numbers of images of
        both splits that could be used.

    Raises:
        ValueError: as `SemanticSegmentation.samples` and `load_maps`.
    """
    train, test = task.samples(task.source, False, 0, None), task.evaluation_data()
    device = best_device()
    maps_of = load_maps(task.model, task.model_revision, task.size, *task.normalisation)

    def batches(dataset: Dataset) -> DataLoader:
        return DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=task.collate)

    maps = extract_maps(maps_of, batches(train), len(train), device)
    probe = fit_segmentation_probe(maps, len(task.names), IGNORED, settings, device)
    mean, per_class = evaluate_segmentation_probe(probe, maps_of, batches(test), len(task.names), IGNORED, device)
    values = {"miou": mean} | {f"iou_{name}": value for name, value in zip(task.names, per_class)}
    metrics = {f"linear_segmentation_{name}": None if math.isnan(x) else x for name, x in values.items()}
    return metrics, (len(maps), test.num_usable)

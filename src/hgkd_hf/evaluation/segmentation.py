"""Intersection over union of class maps, whose pixels torchmetrics counts."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_counts(prediction: Tensor, reference: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels of each class that are right, predicted wrongly, and missed: (num_classes, 3) int64 on the CPU.

    The counts of several images add up, however large these are.

    Args:
        prediction: class map of any shape, int64.
        reference: the labelled map of that shape.
        num_classes: classes are 0 ... num_classes - 1.
        ignore_index: pixels with this label do not count, whatever is predicted there.
    """
    from torchmetrics.functional.classification import multiclass_stat_scores  # seconds to import

    right, wrong, _, missed, _ = multiclass_stat_scores(
        prediction.flatten(),
        reference.flatten(),
        num_classes=num_classes,
        average=None,
        ignore_index=ignore_index,
        validate_args=False,
    ).unbind(1)
    return torch.stack([right, wrong, missed], 1).cpu()


def intersection_over_union(counts: Tensor) -> tuple[float, list[float]]:
    """The mean over the classes that occur, and that of each class; NaN where one is neither predicted nor labelled.

    Intersections and unions are summed over all pixels of all images before they are divided, as in PASCAL VOC
    (Everingham et al. 2010, section 4.1).

    Args:
        counts: (num_classes, 3), sums of what `pixel_counts` gives.
    """
    per_class = counts[:, 0].double() / counts.sum(1)
    return per_class.nanmean().item(), per_class.tolist()

"""`evaluate.Metric` classes that need no network: they come with the package, not as a script from the Hub.

What `add_batch` receives is reduced at once to a few whole numbers an image (`evaluate` would store every score and
every pixel, and hand them back as Python lists). In a distributed run, feed the main process from
`accelerator.gather_for_metrics`.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor


class TopKAccuracy(evaluate.Metric):
    """Fraction of images whose label is among the k classes of highest score; `{"top1_accuracy": ..., ...}`.

    Of equal scores the lower class ranks higher, so the result does not depend on a sorting algorithm.

    Args:
        k: the values of k to report, each at least 1 and at most the number of classes.
        kwargs: of `evaluate.Metric`, such as `cache_dir`.
    """

    def __init__(self, k: Sequence[int] = (1, 5), **kwargs):
        if not k or min(k) < 1:
            raise ValueError(f"k={tuple(k)} must hold whole numbers of at least 1.")
        self.k = tuple(k)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        rank_and_label = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Top-k accuracy.",
            citation="",
            inputs_description="predictions: scores (B, classes). references: labels (B,).",
            features=datasets.Features(rank_and_label),
        )

    def add(self, *, prediction: Tensor, reference: int) -> None:
        """Add the scores (classes,) and the label of one image."""
        self.add_batch(predictions=torch.as_tensor(prediction)[None], references=torch.as_tensor(reference)[None])

    def add_batch(self, *, predictions: Tensor, references: Tensor) -> None:
        """Add scores (B, classes) and labels (B,).

        Raises:
            ValueError: for shapes that do not fit, a NaN score, a label that is no class, or k above the classes.
        """
        scores, labels = torch.as_tensor(predictions).detach().cpu(), torch.as_tensor(references).cpu().long()
        if scores.ndim != 2 or labels.shape != scores.shape[:1]:
            raise ValueError(
                f"predictions {tuple(scores.shape)} and references {tuple(labels.shape)} must be (B, classes), (B,)."
            )
        classes = scores.shape[1]
        if max(self.k) > classes:
            raise ValueError(f"k={max(self.k)} must be at most the {classes} classes of predictions.")
        if ((labels < 0) | (labels >= classes)).any():
            raise ValueError(f"references hold a label outside 0 ... {classes - 1}, the classes of predictions.")
        # No class compares above NaN: a diverged model would be right every time.
        if scores.isnan().any():
            raise ValueError("predictions contain NaN: the model has diverged.")
        own = scores.gather(1, labels[:, None])
        earlier = torch.arange(classes) < labels[:, None]
        rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
        super().add_batch(predictions=rank.tolist(), references=labels.tolist())

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        rank = np.asarray(predictions)
        return {f"top{k}_accuracy": float((rank < k).mean()) for k in self.k}


class MeanIoU(evaluate.Metric):
    """Mean intersection over union of semantic segmentation; `{"mean_iou": ..., "per_class_iou": [...]}`.

    Intersections and unions are summed over all pixels of all images before they are divided, as in PASCAL VOC
    (Everingham et al. 2010). A class that is neither predicted nor labelled, or is ignored, has IoU NaN and does not
    enter the mean.

    Args:
        num_classes: classes are 0 ... num_classes - 1.
        ignore_index: pixels with this label do not count, whatever is predicted there; it may be a class.
        kwargs: of `evaluate.Metric`, such as `cache_dir`.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        # Pixels a class: [in the intersection, predicted] and labelled.
        pixels = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Mean intersection over union.",
            citation="",
            inputs_description="predictions, references: class maps (B, H, W), or lists of (H, W) of any sizes.",
            features=datasets.Features({"predictions": datasets.List(pixels), "references": pixels}),
        )

    def add(self, *, prediction: Tensor, reference: Tensor) -> None:
        """Add the predicted and the labelled class map (H, W) of one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Sequence[Tensor] | Tensor, references: Sequence[Tensor] | Tensor) -> None:
        """Add predicted and labelled class maps: (B, H, W) each, or sequences of (H, W).

        Raises:
            ValueError: for shapes that do not fit, or a value that is neither a class nor (in references) ignored.
        """
        counts = [self._count(*maps) for maps in zip(predictions, references, strict=True)]
        super().add_batch(predictions=[[i, p] for i, p, _ in counts], references=[r for _, _, r in counts])

    def _count(self, prediction: Tensor, reference: Tensor) -> tuple[list[int], list[int], list[int]]:
        prediction, reference = (torch.as_tensor(x).cpu().long() for x in (prediction, reference))
        if prediction.shape != reference.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} must agree in shape."
            )
        counted = reference != self.ignore_index
        prediction, reference = prediction[counted], reference[counted]
        for name, values in (("predictions", prediction), ("references", reference)):
            if ((values < 0) | (values >= self.num_classes)).any():
                raise ValueError(
                    f"{name} hold a value outside 0 ... {self.num_classes - 1} (num_classes={self.num_classes})."
                )
        areas = (prediction[prediction == reference], prediction, reference)
        return tuple(area.bincount(minlength=self.num_classes).tolist() for area in areas)

    def _compute(
        self, predictions: list[list[list[int]]], references: list[list[int]]
    ) -> dict[str, float | list[float]]:
        intersection, predicted = np.asarray(predictions).sum(0)
        union = predicted + np.asarray(references).sum(0) - intersection
        if 0 <= self.ignore_index < self.num_classes:
            union[self.ignore_index] = 0
        iou = np.divide(intersection, union, out=np.full(self.num_classes, np.nan), where=union > 0)
        mean = float(np.nanmean(iou)) if (union > 0).any() else float("nan")
        return {"mean_iou": mean, "per_class_iou": iou.tolist()}

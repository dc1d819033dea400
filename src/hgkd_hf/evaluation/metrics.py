"""`evaluate.Metric` classes that need no network: they come with the package, not as a script from the Hub.

What `add_batch` receives is reduced at once to a few whole numbers an image (`evaluate` would store every score, and
hand them back as Python lists). In a distributed run, feed the main process from
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

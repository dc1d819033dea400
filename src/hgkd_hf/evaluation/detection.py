"""COCO's average precision as an `evaluate.Metric` that needs no network; computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import datasets
import evaluate
import torch

STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class AveragePrecision(evaluate.Metric):
    """Average precision of boxes as COCO defines it (Lin et al. 2014, arXiv:1405.0312; its evaluation server).

    `ap` is the mean over classes and IoU thresholds 0.50, 0.55 ... 0.95; `ap50` and `ap75` at one threshold;
    `ap_small`, `ap_medium` and `ap_large` for boxes below 32 x 32, up to 96 x 96, and above, in pixels of the image;
    `ar100` the recall with 100 boxes an image; `per_class_ap` a list. What no labelled box can tell is NaN.

    Args:
        num_classes: classes are 0 ... num_classes - 1.
        kwargs: of `evaluate.Metric`, such as `cache_dir`.

    Raises:
        ImportError: pycocotools is missing.
    """

    def __init__(self, num_classes: int, **kwargs):
        if find_spec("pycocotools") is None:
            raise ImportError("average precision needs pycocotools: pip install 'hgkd_hf[detection]'.")
        self.num_classes = num_classes
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64")))
        labels, scores = datasets.List(datasets.Value("int64")), datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="COCO average precision.",
            citation="",
            inputs_description="predictions: {boxes, labels, scores} an image. references: {boxes, labels}.",
            features=datasets.Features(
                {
                    "predictions": {"boxes": boxes, "labels": labels, "scores": scores},
                    "references": {"boxes": boxes, "labels": labels},
                }
            ),
        )

    def add(self, *, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Add one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> None:
        """Add images: boxes (N, 4) as x1, y1, x2, y2 in pixels, labels (N,) and, predicted, scores (N,).

        Raises:
            ValueError: for shapes that do not fit, a NaN score or box, or a label that is no class.
        """
        super().add_batch(
            predictions=[self._check(image, "predictions", ("labels", "scores")) for image in predictions],
            references=[self._check(image, "references", ("labels",)) for image in references],
        )

    def _check(self, image: Mapping[str, Any], name: str, columns: tuple[str, ...]) -> dict[str, list]:
        boxes = torch.as_tensor(image["boxes"]).detach().cpu().double().reshape(-1, 4)
        values = {column: torch.as_tensor(image[column]).detach().cpu().reshape(-1) for column in columns}
        if any(len(value) != len(boxes) for value in values.values()):
            counts = ", ".join(f"{len(value)} {column}" for column, value in values.items())
            raise ValueError(f"{name} hold {len(boxes)} boxes, but {counts}: one for each is needed.")
        if not boxes.isfinite().all() or any(value.isnan().any() for value in values.values()):
            raise ValueError(f"{name} contain NaN or infinite values: the model has diverged.")
        labels = values["labels"].long()
        if ((labels < 0) | (labels >= self.num_classes)).any():
            raise ValueError(
                f"{name} hold a label outside 0 ... {self.num_classes - 1} (num_classes={self.num_classes})."
            )
        return {"boxes": boxes.tolist(), **{column: value.tolist() for column, value in values.items()}}

    def _compute(self, predictions: list[dict], references: list[dict]) -> dict[str, float | list[float]]:
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco(references), self._coco(predictions), iouType="bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        statistics = {name: _defined(value) for name, value in zip(STATISTICS, evaluation.stats)}
        # (thresholds, recalls, classes, areas, limits): all areas, 100 boxes an image; -1 = no labelled box.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        per_class = []
        for index in range(self.num_classes):
            known = precision[:, :, index][precision[:, :, index] > -1]
            per_class.append(float(known.mean()) if len(known) else math.nan)
        return {**statistics, "ar100": _defined(evaluation.stats[8]), "per_class_ap": per_class}

    def _coco(self, images: list[dict]):
        """The images as a `COCO` object; its numbers count from 1, because 0 means "no match" to pycocotools."""
        from pycocotools.coco import COCO

        annotations = []
        for image_id, image in enumerate(images, 1):
            scores = image.get("scores") or [0.0] * len(image["labels"])
            for (left, top, right, bottom), label, score in zip(image["boxes"], image["labels"], scores):
                width, height = right - left, bottom - top
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
                annotation |= {"bbox": [left, top, width, height], "area": width * height, "iscrowd": 0}
                annotations.append(annotation | {"score": score})
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image_id} for image_id in range(1, len(images) + 1)],
            "categories": [{"id": label} for label in range(1, self.num_classes + 1)],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco


def _defined(value: float) -> float:
    return math.nan if value < 0 else float(value)

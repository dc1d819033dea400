"""What the quickstart's students learned: frozen features of each, a table, and its reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from ..data import EvaluationDataset, ImageLoader, ImageTransform, load_images
from ..evaluation import Features, extract_features, knn_accuracy, low_shot_probe, pooled_features
from ..teachers import PatchTeacher
from ..teachers.showing import show
from .data import SIZE

METRICS = ("knn", "few_labels")
IMAGE_SIZE = 64  # pixels that students see: twice the images' own
BANK, NEIGHBOURS, TEMPERATURE, SHOTS, DRAWS = 2000, 20, 0.07, 10, 5
PIXELS, RANDOM, SPARK, HINTS, HGKD, MASKED, TEACHER = (
    "raw pixels",
    "random student",
    "SparK (pixels alone)",
    "FitNets (plain features)",
    "H-GKD",
    "H-GKD, 60 % hidden",
    "teacher",
)


@dataclass
class Row:
    """A model's metrics and costs.

    Attributes:
        knn: accuracy in [0, 1].
        few_labels, deviation: mean accuracy in [0, 1] of a probe on `SHOTS` labels a class, and its deviation.
        seconds: of processor time, of all threads, in training; None without one.
        parameters: their number; None without any.
    """

    knn: float
    few_labels: float
    deviation: float
    seconds: float | None = None
    parameters: int | None = None

    @property
    def cells(self) -> list[str]:
        """As the table prints it; a parameter has four bytes."""
        seconds = "-" if self.seconds is None else f"{self.seconds:.0f}"
        size = "-" if self.parameters is None else f"{self.parameters / 1e6:.2f} M, {self.parameters * 4 / 1e6:.1f} MB"
        few = f"{100 * self.few_labels:.1f} ± {100 * self.deviation:.1f}"
        return [f"{100 * self.knn:.1f}", few, seconds, size]


HEADS = ["kNN, %", f"{SHOTS} labels a class, %", "CPU s", "parameters, size"]


@dataclass
class Comparison:
    """The table by row name, and on how many images it was measured."""

    rows: dict[str, Row]
    bank: int
    queries: int

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, results: dict[str, Any]) -> Comparison:
        """From `results.json`, which has other entries too."""
        rows = {name: Row(**row) for name, row in results["rows"].items()}
        return cls(rows, results["bank"], results["queries"])

    def table(self) -> str:
        """The table as text."""
        lines = [["", *HEADS], *([name, *row.cells] for name, row in self.rows.items())]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)

    def reading(self) -> str:
        """A paragraph on the rows, made from them."""
        rows, ours, teacher = self.rows, self.rows[HGKD], self.rows[TEACHER]
        noise = 2 * math.sqrt(ours.knn * (1 - ours.knn) / self.queries)  # two standard errors
        gains = [getattr(ours, metric) - getattr(rows[name], metric) for name in (RANDOM, SPARK) for metric in METRICS]
        verdict = "helped" if min(gains) > noise else "did not help beyond doubt"
        lead = teacher.knn - rows[RANDOM].knn
        share = f"{(ours.knn - rows[RANDOM].knn) / lead:.0%} of the teacher's lead" if lead > 0 else "who has no lead"
        return (
            f"Distillation {verdict}. By kNN the H-GKD student is right for {100 * ours.knn:.1f} % of the test "
            f"images, {_points(gains[0])} than untrained ({share}) and {_points(gains[2])} than trained on pixels "
            f"alone (SparK); with {SHOTS} labels a class, {_points(gains[1])} and {_points(gains[3])}. The teacher, "
            f"with {teacher.parameters / ours.parameters:.2g} times its parameters, is right for "
            f"{100 * teacher.knn:.1f} %; raw pixels are for {100 * rows[PIXELS].knn:.1f} %. FitNets, which regresses "
            f"the teacher's map from the student's last one, has {_points(rows[HINTS].knn - ours.knn)} than H-GKD, "
            f"and H-GKD on masked images {_points(rows[MASKED].knn - ours.knn)}. With {self.queries:,} test images, "
            f"differences below {100 * noise:.1f} points are noise."
        )


def _points(difference: float) -> str:
    """A difference of shares as text."""
    return f"{abs(100 * difference):.1f} points {'more' if difference >= 0 else 'less'}"


def compare(
    images: Path, runs: Mapping[str, Path], teacher: Path, seconds: Mapping[str, float], seed: int
) -> tuple[Comparison, dict[str, Features]]:
    """Measure everything.

    Args:
        images: the quickstart's images.
        runs: a folder of `hgkd distill` for each student, by row name.
        teacher: its folder.
        seconds: of processor time in training, by row name.
        seed: of the random student and of the few-label draws.

    Returns:
        The table, and the features of the test images by row name, without the pixels.
    """
    bank, queries = load_images(images, max_samples=BANK), load_images(images, split="test")
    vit = PatchTeacher.from_pretrained(teacher)
    own, enlarged = (ImageTransform(size, train=False) for size in (SIZE, IMAGE_SIZE))
    networks = {name: AutoModel.from_pretrained(folder / "student") for name, folder in runs.items()}
    torch.manual_seed(seed)
    networks = {RANDOM: AutoModel.from_config(networks[HGKD].config).eval(), **networks}
    models: dict[str, tuple[Callable[[Tensor], Tensor], ImageTransform, int | None]] = {
        PIXELS: (lambda pixels: pixels.flatten(1), own, None),
        **{
            name: (partial(pooled_features, network), enlarged, network.num_parameters())
            for name, network in networks.items()
        },
        TEACHER: (
            lambda pixels: show(vit, pixels, own.image_mean, own.image_std).pooled,
            own,
            vit.model.num_parameters(),
        ),
    }
    rows, tested = {}, {}
    for name, (model, transform, parameters) in models.items():
        features = []
        for source in (bank, queries):
            loader = ImageLoader(EvaluationDataset(source, transform), batch_size=250)
            features.append(extract_features(model, loader, "cpu"))
        knn = knn_accuracy(*features, k=NEIGHBOURS, temperature=TEMPERATURE)
        few, deviation = low_shot_probe(*features, shots=(SHOTS,), draws=DRAWS, seed=seed)[SHOTS]
        rows[name] = Row(knn, few, deviation, seconds.get(name), parameters)
        tested[name] = features[1]
    del tested[PIXELS]
    return Comparison(rows, bank.num_rows, queries.num_rows), tested

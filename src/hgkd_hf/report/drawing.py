"""The pictures of an evaluation while training: into the run's folder, and to its trackers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data import EvaluationDataset
from ..evaluation import Features
from ..students.features import has_feature_scales
from ..training.trainer import DistillationTrainer
from ..visualize import features_figure, nearest, neighbours_figure, prediction_figure
from .record import PICTURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES, QUERIES, NEIGHBOURS = 4, 6, 6


def evaluation_figures(
    model,
    samples: dict[str, torch.Tensor],
    evaluated: tuple[Features, Features],
    datasets: tuple[EvaluationDataset, ...],
) -> dict[str, Figure]:
    """Figures by name: what the student predicts or sees, and which images it finds alike.

    Args:
        model: a distiller, with its teacher attached if it has one.
        samples: a batch of its training data.
        evaluated: features of bank and queries.
        datasets: bank and queries, whose images are drawn.
    """
    figures = {}
    if model.predicts_masked:
        figures["predictions"] = prediction_figure(model, **samples)
    else:
        pixels = torch.stack([datasets[1][index]["pixel_values"] for index in range(min(SAMPLES, len(datasets[1])))])
        pixels = datasets[1].transform.normalize(pixels)
        encoder = model.to_native().base_model
        if has_feature_scales(encoder.config):
            normalisation = model.config.image_mean, model.config.image_std
            figures["features"] = features_figure(encoder.cpu(), pixels, *normalisation)
    bank, queries = evaluated
    queries = queries.select(queries.spread(QUERIES))
    neighbours = nearest(bank, queries, NEIGHBOURS)

    def picture(dataset: EvaluationDataset, index: int) -> torch.Tensor:
        return dataset[index]["pixel_values"].permute(1, 2, 0) / 255

    found = {index: picture(datasets[0], bank.row(index)) for index in neighbours.unique().tolist()}
    pictures = [picture(datasets[1], row) for row in queries.rows.tolist()]
    figures["most-alike"] = neighbours_figure(bank, queries, found, pictures, neighbours)
    return figures


def draw_evaluation(trainer: DistillationTrainer, features: tuple[Features, Features]) -> dict[str, Path]:
    """Write the figures of this step to `pictures/` in the run's folder.

    Args:
        trainer: with kNN data.
        features: of bank and queries.

    Returns:
        The files, by the name that trackers show.
    """
    step, folder = trainer.state.global_step, Path(trainer.args.output_dir, PICTURES)
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.compute_loss_context_manager():
        figures = evaluation_figures(model, trainer.sample_batch(SAMPLES), features, trainer.knn_datasets)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, figure in figures.items():
        pictures[f"eval/{name}"] = folder / f"{name}-{step:06d}.png"
        figure.savefig(pictures[f"eval/{name}"], dpi=100)
    return pictures

"""How a distillation publishes its student."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..checkpoints.run_files import STUDENT_FOLDER
from ..evaluation import Features
from ..methods.base.distiller import DistillerConfig
from ..methods.base.settings import as_list
from ..training.callbacks import warn_only
from ..training.trainer import DistillationTrainer
from ..visualize import prediction_figure
from .export import student_image_processor
from .folder import write_student_folder
from .publishing import ModelPublisher
from .sources import find_source
from .student_card import STUDENT

PREDICTIONS = "predictions.png"


class StudentPublisher(ModelPublisher):
    """Publishes a trainer's student, stock at the root of the repository. See `ModelPublisher`."""

    trainer: DistillationTrainer

    def export(self, folder: Path | None = None, model: PreTrainedModel | None = None) -> Path:
        """`export_student`."""
        return self.export_student(folder, model)

    def export_student(
        self,
        folder: str | Path | None = None,
        model: PreTrainedModel | None = None,
        results: dict[str, float] | None = None,
    ) -> Path:
        """Write the student as it is published.

        Args:
            folder: default: `student/` in the run's folder.
            model: default: the one that is trained.
            results: its metrics, if they are not those of the last evaluation.
        """
        run = Path(self.args.output_dir)
        folder = Path(folder or run / STUDENT_FOLDER)
        self.card.name = self.card.name or run.absolute().name
        card = self.card
        if results is not None:
            card = replace(card, results=card.results | {STUDENT: results})
        if model is None:
            model = self.model
            with warn_only("the picture of the predictions"):
                self._draw_predictions(model, folder)
        config, processor = model.config, self.trainer.processing_class
        if processor is None:
            processor = student_image_processor(config.image_size, config.image_mean, config.image_std)
        return write_student_folder(model, folder, processor, card, run)

    def _draw_predictions(self, model: PreTrainedModel, folder: Path) -> None:
        """Of four training images, for methods that predict a teacher's features at hidden cells."""
        if model.config.model_type != "hgkd" or not model.config.feature_weight:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with self.trainer.compute_loss_context_manager():
            figure = prediction_figure(model, **self.trainer.sample_batch(4))
        figure.savefig(folder / PREDICTIONS, dpi=100)
        self.card.pictures[PREDICTIONS] = "What the student sees, and what it predicts of its teacher's features."

    def model_at(self, checkpoint: Path) -> PreTrainedModel:
        """Read from the checkpoint, since sharded training holds no whole model."""
        return type(self.model).from_pretrained(checkpoint)

    def find_sources(self, model: PreTrainedModel) -> None:
        """Data and teachers."""
        super().find_sources(model)
        config = model.config
        if isinstance(config, DistillerConfig) and config.teacher_name_or_path:
            names, revisions = as_list(config.teacher_name_or_path), as_list(config.teacher_revision)
            found = zip_longest(names, revisions)
            self.card.teachers = [find_source(name, "model", revision) for name, revision in found]

    def protocol(self, args: Any, features: tuple[Features, Features] | None) -> dict[str, str]:
        """Of kNN, the features' rank, and a classifier's accuracy."""
        if features is None:
            return {}
        bank, queries = features
        splits = [getattr(getattr(data, "source", None), "split", "the data") for data in self.trainer.knn_datasets]
        neighbours = min(args.knn_k, len(bank))
        classified = f"{len(queries):,} images of {splits[1]}"
        return {
            "accuracy": f"of the classifier on {classified}",
            "knn_accuracy": (
                f"vote of the {neighbours} nearest by cosine (temperature {args.knn_temperature}) among "
                f"{len(bank):,} images of {splits[0]}, frozen pooled features, on {classified}"
            ),
            "feature_rank": f"exponential of the entropy of the singular values, pooled features of {classified}",
        }

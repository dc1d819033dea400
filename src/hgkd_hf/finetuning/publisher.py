"""How a fine-tuning publishes its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..checkpoints.run_files import MODEL_FOLDER
from ..checkpoints.whole_folders import written_aside
from ..hub.export import save_public
from ..hub.folder import add_card
from ..hub.publishing import ModelPublisher
from ..hub.sources import find_source
from ..hub.student_card import METRICS
from .trainer import FineTuningTrainer


class FineTunedPublisher(ModelPublisher):
    """Publishes a fine-tuned model with its image processor, ready for the task's pipeline. See `ModelPublisher`.

    With an average of the weights, that is what is published.
    """

    trainer: FineTuningTrainer

    def export(self, folder: Path | None = None, model: PreTrainedModel | None = None) -> Path:
        """Write the model, its image processor, its card and what the run tells."""
        run = Path(self.args.output_dir)
        folder = folder or run / MODEL_FOLDER
        self.card.name = self.card.name or run.absolute().name
        with written_aside(folder) as aside:
            save_public(model or self.trainer.evaluated_model, aside, self.trainer.processing_class)
        self.describe(self.trainer.evaluated_model)
        add_card(folder, self.card, run)
        return folder

    def model_at(self, checkpoint: Path) -> PreTrainedModel:
        """The one in memory, whose averaged weights are not in the checkpoint's model file."""
        return self.trainer.evaluated_model

    def describe(self, model: PreTrainedModel) -> None:
        """Class, size, classes and task."""
        card = self.card
        card.method, card.task = "fine-tuning", self.trainer.task.task
        card.student, card.parameters = type(model).__name__, model.num_parameters()
        card.num_classes = model.config.num_labels
        card.own_code = type(model).__module__.partition(".")[0] == __name__.partition(".")[0] or None

    def find_sources(self, model: PreTrainedModel) -> None:
        """Data, and the model that was fine-tuned."""
        super().find_sources(model)
        task = self.trainer.task
        if task.has_weights:
            self.card.start = find_source(task.model, "model", task.model_revision)

    def protocol(self, args: Any, features: None) -> dict[str, str]:
        """Of the task's metrics."""
        data = self.trainer.eval_dataset
        return dict.fromkeys(METRICS, f"on {data.num_usable:,} images of {data.source.split}")

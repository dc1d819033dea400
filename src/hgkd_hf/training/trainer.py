"""The trainer of distillation: the common loop, and the student's features evaluated while it trains."""

from __future__ import annotations

from itertools import islice

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.image_processing_utils import BaseImageProcessor

from ..data import ImageLoader, collate
from ..evaluation import Features, extract_features, feature_rank, feature_std, knn_accuracy
from .arguments import DistillationArguments
from .base import BaseTrainer
from .callbacks import CollapseWarning, TrainingProgress, outlive_signal


class DistillationTrainer(BaseTrainer):
    """Trains a distiller and evaluates its student's features by kNN.

    With evaluations, the best checkpoint by kNN accuracy is kept beside the last. All else is `BaseTrainer`'s.

    Args:
        model: e.g. `HGKDForPreTraining` with its teacher attached; must have `image_features(pixel_values)`.
        args: the arguments.
        train_dataset: samples with `pixel_values` and what else the model's forward takes.
        knn_datasets: labelled bank and queries; None = no evaluation.
        image_processor: saved with every checkpoint.
        callbacks: further ones.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationArguments,
        train_dataset: Dataset,
        knn_datasets: tuple[Dataset, Dataset] | None = None,
        image_processor: BaseImageProcessor | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        queries = None
        if knn_datasets is not None:
            queries = knn_datasets[1]
            args.choose_best_by("knn_accuracy")
        callbacks = [CollapseWarning(), TrainingProgress(model), *(callbacks or [])]
        super().__init__(model, args, train_dataset, queries, collate, image_processor, callbacks)
        self.knn_datasets = knn_datasets

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """kNN accuracy of the student's image features, their effective rank and standard deviation.

        Of a student that classifies, also its own `accuracy`, top-1.
        Callbacks get `metrics`, and the `features` of bank and queries.
        """
        bank, queries = (self.extract(dataset) for dataset in self.knn_datasets)
        metrics = {
            "knn_accuracy": knn_accuracy(
                bank,
                queries,
                k=min(self.args.knn_k, len(bank)),
                temperature=self.args.knn_temperature,
                device=self.args.device,
            ),
            "feature_rank": feature_rank(queries.features),
            "feature_std": feature_std(queries.features),
        }
        if self.accelerator.unwrap_model(self.model).classifies:
            answers = self.extract(self.knn_datasets[1], logits=True)
            metrics["accuracy"] = (answers.features.argmax(1) == answers.labels).float().mean().item()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics, features=(bank, queries)
        )
        return metrics

    def sample_batch(self, count: int) -> dict[str, Tensor]:
        """The first `count` training samples as the model's arguments, on its device; to be drawn."""
        batch = self._prepare_inputs(self.data_collator(list(islice(iter(self.train_dataset), count))))
        return {name: value for name, value in batch.items() if name != "sample_index"}

    def extract(self, dataset: Dataset, logits: bool = False) -> Features:
        """The student's features of a labelled dataset, or its `logits` in their place.

        The dataset is shared out among the processes; each gets all of the results, one for every readable image.
        """
        model = self.accelerator.unwrap_model(self.model)
        loader = ImageLoader(
            dataset,
            self.args.per_device_eval_batch_size,
            self.args.device,
            sampler=self.own_share(dataset),
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=outlive_signal,
        )
        with self.compute_loss_context_manager():
            function = model.image_logits if logits else model.image_features
            part = extract_features(function, loader, self.args.device, module=model)
        if self.args.world_size == 1:
            return part.each_once()
        parts = (part.features, part.labels, part.rows)
        return Features(*(self.accelerator.gather(p.to(self.args.device)).cpu() for p in parts)).each_once()

"""The training loop: `transformers.Trainer` with what distillation adds to it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.image_processing_utils import BaseImageProcessor

from .data import collate
from .evaluation import Features, extract_features, feature_rank, feature_std, knn_accuracy
from .sparse.norm import synchronise_batch_norm


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` with the field's defaults for masked pre-training, and a few fields more.

    The learning rate is `base_learning_rate * images per step / 256`, as in MAE and SparK, unless `learning_rate` is
    given.
    """

    base_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate for 256 images a step; scaled by the real number."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate as it is; overrides --base_learning_rate."}
    )
    sync_batch_norm: bool = field(
        default=True, metadata={"help": "Share BatchNorm's training statistics among processes."}
    )
    knn_k: int = field(default=20, metadata={"help": "Neighbours of the kNN evaluation."})
    knn_temperature: float = field(default=0.07, metadata={"help": "Temperature of the kNN evaluation's weights."})

    output_dir: str = field(default="runs/distillation", metadata={"help": "The run's folder."})
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 128
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    weight_decay: float = 0.05
    adam_beta2: float = 0.95
    max_grad_norm: float = 5.0
    logging_steps: float = 10
    remove_unused_columns: bool = False
    dataloader_num_workers: int = 0
    ddp_find_unused_parameters: bool | None = False
    save_total_limit: int | None = 2

    def __post_init__(self):
        if not torch.accelerator.is_available():
            # Without it, each process of several on a machine without accelerator believes that it is alone.
            self.use_cpu = True
        scaled = self.learning_rate is None
        if scaled:
            self.learning_rate = 0.0
        super().__post_init__()
        if scaled:
            self.learning_rate = self.base_learning_rate * self.images_per_step / 256

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step, over all processes and accumulated batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size


class DistillationTrainer(Trainer):
    """Trains a distiller: a model whose output has `loss` first and named scalar terms beside it.

    It logs every named term, keeps biases, norms and mask tokens free of weight decay, tells the dataset its epoch,
    shares BatchNorm statistics among processes, and evaluates the student's features by kNN. With evaluations,
    the best checkpoint by kNN accuracy is kept beside the last.

    Args:
        model: e.g. `HGKDForPreTraining` with its teacher attached; must have `image_features(pixel_values)`.
        args: the arguments.
        train_dataset: samples with `pixel_values` and what else the model's forward takes.
        knn_datasets: labelled bank and queries; None = no evaluation.
        image_processor: saved with every checkpoint.
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
        if args.sync_batch_norm and args.world_size > 1:
            synchronise_batch_norm(model)
        if knn_datasets is not None and args.metric_for_best_model is None:
            args.metric_for_best_model, args.greater_is_better = "knn_accuracy", True
        super().__init__(
            model=model.to(memory_format=torch.channels_last),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=None if knn_datasets is None else knn_datasets[1],
            data_collator=collate,
            processing_class=image_processor,
            callbacks=[DatasetEpoch(train_dataset), MetricsFile(), *(callbacks or [])],
        )
        self.model_accepts_loss_kwargs = False  # a mean over the batch, to be divided when batches are accumulated
        self.knn_datasets = knn_datasets
        self._terms: dict[str, Tensor] = {}
        self._term_steps = 0
        self._last_log = (0, time.perf_counter())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; its other scalars are remembered for the log."""
        inputs = {name: value for name, value in inputs.items() if name != "sample_index"}
        outputs = model(**inputs)
        self._term_steps += 1
        for name, value in outputs.items():
            if name != "loss" and isinstance(value, Tensor) and value.dim() == 0:
                self._terms[name] = self._terms.get(name, 0) + value.detach().float()
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the named terms' means since the last log, over all processes, and the speed."""
        if "loss" in logs and self._term_steps:
            sums = torch.stack([*self._terms.values(), torch.zeros((), device=self.args.device)])
            means = self.accelerator.reduce(sums / self._term_steps, "mean")
            logs.update(zip(self._terms, means.tolist()))
            step, now = self.state.global_step, time.perf_counter()
            last_step, last_time = self._last_log
            logs["images_per_second"] = round((step - last_step) * self.args.images_per_step / (now - last_time), 1)
            self._terms, self._term_steps = {}, 0
        self._last_log = (self.state.global_step, time.perf_counter())
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of convolutions and linear layers; no biases, norms or mask tokens."""
        return [name for name, p in model.named_parameters() if p.dim() > 1 and not name.endswith("mask_token")]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """kNN accuracy of the student's image features, their effective rank and standard deviation."""
        bank, queries = (self.extract(dataset) for dataset in self.knn_datasets)
        metrics = {
            "knn_accuracy": knn_accuracy(
                bank, queries, k=min(self.args.knn_k, len(bank)), temperature=self.args.knn_temperature
            ),
            "feature_rank": feature_rank(queries.features),
            "feature_std": feature_std(queries.features),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def extract(self, dataset: Dataset) -> Features:
        """The student's features of a labelled dataset, shared out among the processes; each gets all of them."""
        model = self.accelerator.unwrap_model(self.model)
        rank, world = self.args.process_index, self.args.world_size
        # Every process reads equally many, the last ones anew from the start, which is cut off again.
        count = -(-len(dataset) // world)
        share = Subset(dataset, [(rank + step * world) % len(dataset) for step in range(count)])
        loader = DataLoader(
            share,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            collate_fn=collate,
        )
        with self.compute_loss_context_manager():
            part = extract_features(model.image_features, loader, self.args.device, module=model)
        if world == 1:
            return part

        def gather(values: Tensor) -> Tensor:  # (count, ...) of each process to (len(dataset), ...) in order
            gathered = self.accelerator.gather(values.to(self.args.device)).view(world, count, *values.shape[1:])
            return gathered.transpose(0, 1).flatten(0, 1)[: len(dataset)].cpu()

        return Features(gather(part.features), gather(part.labels))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model and image processor, and the arguments as JSON (`Trainer` would pickle them)."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(folder, state_dict=state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            (folder / "training_args.json").write_text(self.args.to_json_string())


class DatasetEpoch(TrainerCallback):
    """Tells the training data which epoch begins (Accelerate does not, once it has split the batches)."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the epoch that crops, flips and masks are drawn for."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))


class MetricsFile(TrainerCallback):
    """Writes every log entry as a line of `metrics.jsonl` in the run's folder."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append the entry."""
        if state.is_world_process_zero:
            path = Path(args.output_dir, "metrics.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

"""The loop of fine-tuning: the common loop with layer-wise rates, averaged weights and a task's metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from transformers.image_processing_utils import BaseImageProcessor

from ..evaluation.features import eval_mode
from ..training.arguments import DistillationArguments
from ..training.base import BaseTrainer
from ..training.callbacks import outlive_signal
from .layer_decay import decay_learning_rates
from .settings import FineTuningSettings
from .task import Task

AVERAGED_WEIGHTS = "averaged_weights.safetensors"


@dataclass
class FineTuningArguments(FineTuningSettings, DistillationArguments):
    """`DistillationArguments` with the fields and defaults of `FineTuningSettings`.

    A `layer_decay` of None is the task's: its trainer settles it.

    `early_stopping_patience` sets `load_best_model_at_end`.
    """

    def __post_init__(self):
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        super().__post_init__()

    def settle_layer_decay(self, task: Task) -> None:
        """Where none is given, take what is good for the task and its model."""
        if self.layer_decay is None:
            self.layer_decay = task.layer_decay


class FineTuningTrainer(BaseTrainer):
    """Trains a stock model on labels and evaluates it by its task's metrics.

    Args:
        model: with a loss when called with `labels`.
        args: the arguments.
        task: of `TASKS`; collates, predicts, scores.
        train_dataset, eval_dataset: of `task.dataset`; no evaluation without the second.
        image_processor: saved with every checkpoint.
        callbacks: further ones.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: FineTuningArguments,
        task: Task,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        image_processor: BaseImageProcessor | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if args.early_stopping_patience is not None and eval_dataset is None:
            raise ValueError(
                f"early_stopping_patience is {args.early_stopping_patience}, but there are no images to evaluate on: "
                "name their split with --eval_split."
            )
        args.settle_layer_decay(task)
        if eval_dataset is not None:
            args.choose_best_by(task.main_metric)
        super().__init__(model, args, train_dataset, eval_dataset, task.collate, image_processor, callbacks)
        self.task = task
        if args.early_stopping_patience is not None:
            self.add_callback(_EarlyStopping(args.early_stopping_patience))
        self.averaged = None
        if args.ema_decay is not None:
            self.averaged = AveragedModel(self.model, multi_avg_fn=_moving_average(args.ema_decay), use_buffers=True)
            self.add_callback(_Averaging(self))

    @property
    def evaluated_model(self) -> PreTrainedModel:
        """The model that is evaluated and kept: the average of the weights where there is one."""
        return self.accelerator.unwrap_model(self.model) if self.averaged is None else self.averaged.module

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer, with smaller learning rates for the encoder's earlier layers."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.args.layer_decay != 1:
            encoder = self.task.encoder(self.accelerator.unwrap_model(self.model))
            decay_learning_rates(optimizer, encoder, self.args.layer_decay)
        return optimizer

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The task's metrics; images are shared out among the processes."""
        metrics = self.task.score(self.predict_all(eval_dataset or self.eval_dataset))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict_all(self, dataset: Dataset) -> list:
        """What the task's `predict` gives of every readable image, in every process."""
        model = self.evaluated_model
        loader = DataLoader(
            Subset(dataset, self.own_share(dataset)),
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            collate_fn=self.task.collate,
            worker_init_fn=outlive_signal,
        )
        predicted: dict[int, Any] = {}  # by row: some come again, as the next in place of an unreadable image
        with eval_mode(model), torch.no_grad(), self.compute_loss_context_manager():
            for batch in loader:
                rows = batch["sample_index"].tolist()
                predicted |= zip(rows, self.task.predict(model, self._prepare_inputs(batch)), strict=True)
        if self.args.world_size > 1:
            predicted = dict(gather_object(list(predicted.items())))
        return list(predicted.values())

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As its parent, and the averaged weights in a file of their own."""
        super()._save(output_dir, state_dict)
        if self.averaged is not None and self.args.should_save:
            file = Path(output_dir or self.args.output_dir, AVERAGED_WEIGHTS)
            save_file({name: value.contiguous() for name, value in self.averaged.state_dict().items()}, file)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.averaged is not None:
            self.averaged.load_state_dict(load_file(Path(resume_from_checkpoint, AVERAGED_WEIGHTS)))


class _EarlyStopping(EarlyStoppingCallback):
    """transformers', whose count of evaluations without a gain is kept by a resumed run."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step:
            saved = state.stateful_callbacks.get(type(self).__name__, self.state())
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]


class _Averaging(TrainerCallback):
    """Takes every step's weights into the average; where the best model is kept, its average is."""

    def __init__(self, trainer: FineTuningTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.averaged.update_parameters(self.trainer.accelerator.unwrap_model(self.trainer.model))

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.trainer.averaged.load_state_dict(load_file(Path(state.best_model_checkpoint, AVERAGED_WEIGHTS)))


def _moving_average(decay: float):
    """An exponential average whose memory grows with the steps up to `decay`, so that short runs profit too."""

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        weight = 1 - ((1 + count) / (10 + count)).clamp(max=decay)  # on the device, which nobody waits for
        for mean, value in zip(averaged, current):
            if mean.is_floating_point():
                mean.lerp_(value, weight.to(mean.dtype))
            else:
                mean.copy_(value)

    return average

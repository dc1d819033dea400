"""The training loop: `transformers.Trainer` with what distillation adds to it."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, ProgressCallback, TrainerCallback
from transformers.image_processing_utils import BaseImageProcessor
from transformers.trainer_utils import TrainOutput

from ..checkpoints.resume import ResumableTrainer
from ..data import EndlessStream, StreamingDistillationDataset, collate
from ..evaluation import Features, extract_features, feature_rank, feature_std, knn_accuracy
from ..hub.folder import warn_only
from ..hub.publishing import PublishingTrainer
from ..report import draw_evaluation, settle_trackers, write_report
from ..sparse.norm import synchronise_batch_norm
from .arguments import DistillationArguments
from .guards import (
    REQUEUE_EXIT_CODE,
    CollapseWarning,
    LossSpikes,
    NonFiniteGuard,
    SeedEachStep,
    SkippedImagesLimit,
    StopOnSignal,
    finite_sum,
    outlive_signal,
)
from .progress import ImagesPerSecond

logger = logging.getLogger(__name__)


class DistillationTrainer(PublishingTrainer, ResumableTrainer):
    """Trains a distiller: a model whose output has `loss` first and named scalar terms beside it.

    It logs every named term, keeps biases, norms and mask tokens free of weight decay, tells the dataset its epoch,
    shares BatchNorm statistics among processes, and evaluates the student's features by kNN. With evaluations,
    the best checkpoint by kNN accuracy is kept beside the last.

    A run that was killed at any moment and goes on with `train(resume_from_checkpoint=True)` equals one that was not,
    bit for bit on CPU: samples are keyed by (seed, epoch, index), all else that is random by (seed, step, rank), and
    checkpoints are whole or not there. SIGTERM saves one and exits with `guards.REQUEUE_EXIT_CODE`. Steps that are not
    finite are skipped and named in `non_finite.jsonl`; too many of them, or of unreadable images, end the run
    (`RunStopped`).

    Args:
        model: e.g. `HGKDForPreTraining` with its teacher attached; must have `image_features(pixel_values)`.
        args: the arguments.
        train_dataset: samples with `pixel_values` and what else the model's forward takes.
        knn_datasets: labelled bank and queries; None = no evaluation.
        image_processor: saved with every checkpoint.

    Raises:
        ValueError: the dataset has fewer samples than one step takes, or streams and there is no `max_steps`.
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
        args.settle_batch_size(model, train_dataset, collate)
        if hasattr(train_dataset, "__len__") and len(train_dataset) < args.images_per_step:
            raise ValueError(
                f"the training data has {len(train_dataset)} samples, but a step takes {args.images_per_step} "
                f"({args.train_batch_size} a batch, {args.gradient_accumulation_steps} accumulated, "
                f"{args.world_size} process(es)): lower --per_device_train_batch_size."
            )
        if isinstance(train_dataset, StreamingDistillationDataset):
            if args.max_steps <= 0:
                raise ValueError("a stream has no length: say how long to train with --max_steps.")
            # A worker without a file of its own would break the turns; the stream itself knows where to go on.
            args.dataloader_num_workers = min(args.dataloader_num_workers, train_dataset.rows.num_shards)
            args.ignore_data_skip = True
        if args.sync_batch_norm and args.world_size > 1:
            synchronise_batch_norm(model)
        if knn_datasets is not None and args.metric_for_best_model is None:
            args.metric_for_best_model, args.greater_is_better = "knn_accuracy", True
        stop = StopOnSignal()
        super().__init__(
            model=model.to(memory_format=torch.channels_last),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=None if knn_datasets is None else knn_datasets[1],
            data_collator=collate,
            processing_class=image_processor,
            callbacks=[
                DatasetEpoch(train_dataset),
                SeedEachStep(),
                stop,
                SkippedImagesLimit(train_dataset, args.max_skipped_share),
                CollapseWarning(),
                MetricsFile(),
                ReportAtEnd(),
                self.use_card(train_dataset, knn_datasets),
                *(callbacks or []),
            ],
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ImagesPerSecond())
        settle_trackers(self)
        self.model_accepts_loss_kwargs = False  # a mean over the batch, to be divided when batches are accumulated
        self.knn_datasets = knn_datasets
        self._stop = stop
        self._guard = NonFiniteGuard(model, args.max_non_finite_steps, Path(args.output_dir, "non_finite.jsonl"))
        self._spikes = LossSpikes()
        self._terms: dict[str, Tensor] = {}  # (sum, count) of each since the last log
        self._step_losses: list[Tensor] = []  # of the running step's batches, as are their samples
        self._step_samples: list[Tensor] = []
        self._last_log = (0, time.perf_counter())
        self._data_wait = 0.0  # seconds since the last log

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`ResumableTrainer.train`; what breaks after a SIGTERM was broken by it.

        Raises:
            SystemExit: a signal came; with `REQUEUE_EXIT_CODE`, after saving a checkpoint if there was time.
        """
        try:
            return super().train(*args, **kwargs)
        except RuntimeError as error:
            if not self._stop.received:
                raise
            # It may have ended a worker that was just starting, or another process of the job.
            logger.warning("SIGTERM: no checkpoint could be saved any more (%s).", str(error).splitlines()[0])
            raise SystemExit(REQUEUE_EXIT_CODE) from None

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s; of a stream one that never ends, and in a resumed run goes on where it was."""
        stream, args = self.train_dataset, self.args
        if not isinstance(stream, StreamingDistillationDataset):
            loader = super().get_train_dataloader()
            loader.worker_init_fn = outlive_signal  # not `Trainer`'s seeds: samples have their own
            return loader
        # Accelerate reads a stream in the first process and gives every process its batch.
        group = math.lcm(max(args.dataloader_num_workers, 1), args.world_size)
        before = self.resumed_step * args.gradient_accumulation_steps * args.world_size
        endless = EndlessStream(stream, self._train_batch_size, before // group * group)
        loader = self._get_dataloader(endless, "Training", self._train_batch_size, is_training=True)
        loader.worker_init_fn = outlive_signal
        return skip_first_batches(loader, before % group // args.world_size)

    def get_batch_samples(self, *args: Any, **kwargs: Any):
        """`Trainer.get_batch_samples`; the time that it waits for data is measured."""
        start = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self._data_wait += time.perf_counter() - start
        return batches

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; its other scalars are remembered for the log."""
        samples = inputs.get("sample_index")
        inputs = {name: value for name, value in inputs.items() if name != "sample_index"}
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss" and isinstance(value, Tensor) and value.dim() == 0:
                self._terms[name] = finite_sum(self._terms.get(name), value)
        self._step_losses.append(outputs.loss.detach())
        if samples is not None:
            self._step_samples.append(samples)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The gradient's norm; a step in which it is not finite becomes none."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        loss, norm = torch.stack(self._step_losses).mean().item(), float(grad_norm)
        samples = torch.cat(self._step_samples).tolist() if self._step_samples else []
        self._step_losses, self._step_samples = [], []
        scaler = self.accelerator.scaler
        unfit = torch.tensor(float(not (math.isfinite(loss) and math.isfinite(norm))), device=self.args.device)
        if not self.accelerator.reduce(unfit):  # all decide alike, though losses differ
            self._guard.remember()
            if self._spikes.is_spike(loss) and self.is_world_process_zero():
                super().log({"loss_spike": loss, "usual_loss": self._spikes.mean})
        elif scaler is None or scaler.get_scale() < 1:  # above, it is fp16's search for a scale
            model.zero_grad(set_to_none=True)  # an optimizer leaves parameters without gradients alone
            if self.args.world_size > 1:
                samples = gather_object(samples)
            self._guard.skip(self.state.global_step, loss, norm, samples, self.is_world_process_zero())
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the named terms' means since the last log, over all processes, and the speed."""
        if "loss" in logs and self._terms:
            sums, counts = self.accelerator.reduce(torch.stack(list(self._terms.values())), "sum").unbind(1)
            logs.update(zip(self._terms, (sums / counts).tolist()))
            step, now = self.state.global_step, time.perf_counter()
            last_step, last_time = self._last_log
            speed = (step - last_step) * self.args.images_per_step / (now - last_time)
            logs["images_per_second"] = float(f"{speed:.4g}")  # a slow machine's is not 0
            logs["data_wait_share"] = round(min(1.0, self._data_wait / (now - last_time)), 3)
            self._terms = {}
        self._last_log, self._data_wait = (self.state.global_step, time.perf_counter()), 0.0
        super().log(logs, start_time)

    def log_state(self) -> dict[str, Any]:
        """With the named terms."""
        return super().log_state() | {"terms": self._terms}

    def load_log_state(self, state: dict[str, Any]) -> None:
        """With the named terms."""
        super().load_log_state(state)
        self._terms = {name: value.to(self.args.device) for name, value in state["terms"].items()}

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of convolutions and linear layers; no biases, norms or mask tokens."""
        return [name for name, p in model.named_parameters() if p.dim() > 1 and not name.endswith("mask_token")]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """kNN accuracy of the student's image features, their effective rank and standard deviation.

        Of a student that classifies, also its own `accuracy`, top-1.
        """
        bank, queries = (self.extract(dataset) for dataset in self.knn_datasets)
        metrics = {
            "knn_accuracy": knn_accuracy(
                bank, queries, k=min(self.args.knn_k, len(bank)), temperature=self.args.knn_temperature
            ),
            "feature_rank": feature_rank(queries.features),
            "feature_std": feature_std(queries.features),
        }
        if self.accelerator.unwrap_model(self.model).classifies:
            answers = self.extract(self.knn_datasets[1], "image_logits")
            metrics["accuracy"] = (answers.features.argmax(1) == answers.labels).float().mean().item()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_world_process_zero():
            with warn_only("the pictures of the evaluation"):
                draw_evaluation(self, (bank, queries))
        return metrics

    def extract(self, dataset: Dataset, function: str = "image_features") -> Features:
        """What a `function` of the model gives for a labelled dataset: by default the student's features.

        The dataset is shared out among the processes; each gets all of the results.
        """
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
            worker_init_fn=outlive_signal,
        )
        with self.compute_loss_context_manager():
            part = extract_features(getattr(model, function), loader, self.args.device, module=model)
        if world == 1:
            return part

        def gather(values: Tensor) -> Tensor:  # (count, ...) of each process to (len(dataset), ...) in order
            gathered = self.accelerator.gather(values.to(self.args.device)).view(world, count, *values.shape[1:])
            return gathered.transpose(0, 1).flatten(0, 1)[: len(dataset)].cpu()

        return Features(gather(part.features), gather(part.labels))


class DatasetEpoch(TrainerCallback):
    """Tells the training data which epoch begins (Accelerate does not, once it has split the batches).

    A stream counts its passes itself; there, the log's `epoch` is the share of the steps that are done.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the epoch that crops, flips and masks are drawn for."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        """Of a stream, which `Trainer` believes to start anew when a run is resumed, mend the epoch."""
        if isinstance(self.dataset, StreamingDistillationDataset):
            state.epoch = state.global_step / state.max_steps


class MetricsFile(TrainerCallback):
    """Writes every log entry as a line of `metrics.jsonl` in the run's folder; what is not finite is null."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Take back the entries of steps that are to be done again, and a line that was cut short."""
        path = Path(args.output_dir, "metrics.jsonl")
        if state.is_world_process_zero and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            written = path.with_suffix(".partial")
            written.write_text("".join(kept), encoding="utf-8")
            os.replace(written, path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append the entry."""
        if state.is_world_process_zero:
            path = Path(args.output_dir, "metrics.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in {"step": state.global_step, **logs}.items()
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")


class ReportAtEnd(TrainerCallback):
    """Writes the run's report when the training ends; a script may write it again when it knows more."""

    def on_train_end(self, args, state, control, **kwargs):
        """Write it."""
        if state.is_world_process_zero:
            with warn_only("the report"):
                write_report(args.output_dir)

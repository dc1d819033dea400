"""The loop that all trainings share: `transformers.Trainer` with what training on images adds to it."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.data.data_collator import DataCollator
from transformers.image_processing_utils import BaseImageProcessor
from transformers.trainer_utils import TrainOutput

from ..checkpoints.resume import ResumableTrainer
from ..checkpoints.run_files import NON_FINITE_FILE
from ..data import EndlessStream, StreamingDistillationDataset, collate, model_inputs
from ..sparse.norm import synchronise_batch_norm
from .arguments import DistillationArguments
from .callbacks import (
    REQUEUE_EXIT_CODE,
    DatasetEpoch,
    Publisher,
    SeedEachStep,
    SkippedImagesLimit,
    StopOnSignal,
    end_workers,
    outlive_signal,
)
from .guards import LossSpikes, NonFiniteGuard, finite_sum
from .metrics_file import MetricsFile
from .progress import ImagesPerSecond

logger = logging.getLogger(__name__)

STREAM_STATE = "stream_state_{}.json"  # in a checkpoint, of each process


def read_stream_states(checkpoint: Path) -> list[dict[str, Any]]:
    """What `EndlessStream.state` gave in each process, in their order; none in checkpoints of earlier versions."""
    paths = (checkpoint / STREAM_STATE.format(rank) for rank in itertools.count())
    states = [json.loads(path.read_text(encoding="utf-8")) for path in itertools.takewhile(Path.is_file, paths)]
    if not states:
        logger.warning("%s does not say where the stream was: it is read from its first row.", checkpoint)
    return states


class BaseTrainer(ResumableTrainer):
    """Trains a model whose output has `loss` first and may have named scalar terms beside it.

    It logs every named term, keeps biases, norms and mask tokens free of weight decay, tells the dataset its epoch,
    and shares BatchNorm statistics among processes.

    A run that was killed at any moment and is resumed with `train(resume_from_checkpoint=True)` equals one that was
    not, bit for bit on CPU: samples are keyed by (seed, epoch, index), all else that is random by (seed, step, rank),
    and checkpoints are whole or not there. SIGTERM saves one and exits with `callbacks.REQUEUE_EXIT_CODE`. Steps that
    are not finite are skipped and named in `non_finite.jsonl`; too many of them, or of unreadable images, end the run
    (`RunStopped`).

    Report, trackers and the Hub are callbacks: see `report` and `hub`.

    Args:
        model: returns a loss when called with a batch.
        args: the arguments.
        train_dataset: samples with `pixel_values` and what else the model's forward takes.
        eval_dataset: for `evaluate`, which subclasses define.
        data_collator: samples to a batch.
        image_processor: saved with every checkpoint.
        callbacks: further ones.

    Raises:
        ValueError: the dataset has fewer samples than one step takes, or streams and there is no `max_steps`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationArguments,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        data_collator: DataCollator = collate,
        image_processor: BaseImageProcessor | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        args.settle_batch_size(model, train_dataset, data_collator)
        if hasattr(train_dataset, "__len__") and len(train_dataset) < args.images_per_step:
            raise ValueError(
                f"the training data has {len(train_dataset)} samples, but a step takes {args.images_per_step} "
                f"({args.train_batch_size} a batch, {args.gradient_accumulation_steps} accumulated, "
                f"{args.world_size} process(es)): lower --per_device_train_batch_size."
            )
        if isinstance(train_dataset, StreamingDistillationDataset):
            if args.max_steps <= 0:
                raise ValueError("a stream has no length: say how long to train with --max_steps.")
            own = train_dataset.num_shards // args.world_size  # a shard of several readers is read by each
            args.dataloader_num_workers = min(args.dataloader_num_workers, max(1, own))
            args.ignore_data_skip = True
        if args.sync_batch_norm and args.world_size > 1:
            synchronise_batch_norm(model)
        self._stop = StopOnSignal()
        super().__init__(
            model=model.to(memory_format=torch.channels_last),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=image_processor,
            callbacks=[
                DatasetEpoch(train_dataset),
                SeedEachStep(),
                self._stop,
                SkippedImagesLimit(train_dataset, args.max_skipped_share),
                MetricsFile(),
                *(callbacks or []),
            ],
        )
        self.pop_callback(PrinterCallback)  # metrics.jsonl and the log have what it prints
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ImagesPerSecond())
        self.model_accepts_loss_kwargs = False  # a mean over the batch, to be divided when batches are accumulated
        record = Path(args.output_dir, NON_FINITE_FILE)
        self._guard = NonFiniteGuard(model, self.accelerator, args.max_non_finite_steps, record)
        self._spikes = LossSpikes()
        self._terms: dict[str, Tensor] = {}  # (sum, count) of each since the last log
        self._last_log: tuple[int, float] | None = None  # step and time, None before the first step
        self._data_wait = 0.0  # seconds since then
        self._stream: EndlessStream | None = None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`ResumableTrainer.train`; what breaks after a SIGTERM was broken by it.

        Raises:
            ValueError: `push_to_hub` is set, and no callback publishes.
            SystemExit: a signal came; with `REQUEUE_EXIT_CODE`, after saving a checkpoint if there was time.
        """
        if self.args.push_to_hub:
            self.publisher  # noqa: B018 (raises)
        self._last_log = None
        others = multiprocessing.active_children()  # the caller's
        with self._stop.listening():
            try:
                return super().train(*args, **kwargs)
            except BaseException as error:
                end_workers(others)
                if not (isinstance(error, RuntimeError) and self._stop.received):
                    raise
                # It may have ended a worker that was just starting, or another process of the job.
                logger.warning("SIGTERM: no checkpoint could be saved any more (%s).", str(error).splitlines()[0])
                raise SystemExit(REQUEUE_EXIT_CODE) from None

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s; of a stream one that never ends, of this process's own shards, resumed where it was."""
        stream, args = self.train_dataset, self.args
        if not isinstance(stream, StreamingDistillationDataset):
            loader = super().get_train_dataloader()
            loader.worker_init_fn = outlive_signal  # not `Trainer`'s seeds: samples have their own
            return loader
        self._stream = EndlessStream(
            stream,
            self.data_collator,
            rank=args.process_index,
            world_size=args.world_size,
            workers=args.dataloader_num_workers,
            states=[] if self._resumed_from is None else read_stream_states(self._resumed_from),
        )
        loader = DataLoader(
            self._stream,
            batch_size=self._train_batch_size,
            collate_fn=self._stream.collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=outlive_signal,
        )
        # As if there were one process: the shards are shared out already.
        alone = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
        return prepare_data_loader(loader, args.device, put_on_device=True, **alone)

    def get_batch_samples(self, *args: Any, **kwargs: Any):
        """`Trainer.get_batch_samples`; the time that it waits for data is measured."""
        start = time.perf_counter()
        if self._last_log is None:
            self._last_log = (self.state.global_step, start)
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._data_wait += time.perf_counter() - start
        if self._stream is not None:
            for batch in batches:
                self._stream.note(batch)
        return batches, num_items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`Trainer._prepare_inputs`; pixels, of 8 bits until they are on the device, are normalised there."""
        return model_inputs(self.train_dataset, super()._prepare_inputs(inputs))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """`Trainer.training_step`; a loss that is not finite counts as the mean of the others since the last log.

        That is what `logging_nan_inf_filter` does, which waits for the device in every step.
        """
        self._guard.begin_batch()
        loss = super().training_step(*args, **kwargs)
        mean = self._tr_loss / (1 + self.state.global_step - self._globalstep_last_logged)
        return torch.where(loss.isfinite(), loss, mean)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; its other scalars are remembered for the log."""
        samples = inputs.get("sample_index")
        inputs = {name: value for name, value in inputs.items() if name != "sample_index"}
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss" and isinstance(value, Tensor) and value.dim() == 0:
                self._terms[name] = finite_sum(self._terms.get(name), value)
        self._guard.end_batch(outputs.loss, samples)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The gradient's norm; nothing comes of a step in which it is not finite."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._guard.judge(self.state.global_step, grad_norm, self.optimizer)
        if self._guard.is_full:
            self._read_guard()
        return grad_norm

    def _read_guard(self) -> None:
        """Wait for the device, and tell what the steps since the last time were like."""
        for step, loss in self._guard.read():
            if self._spikes.is_spike(loss) and self.is_world_process_zero():
                super().log({"loss_spike": loss, "usual_loss": self._spikes.mean, "spike_step": step})

    def _save_checkpoint(self, model, trial=None) -> None:
        """As its parent, but not once a run is to be stopped for what its steps were like."""
        self._read_guard()
        super()._save_checkpoint(model, trial)

    def _save_training_state(self, folder: Path) -> None:
        """With the place in the stream of each process."""
        super()._save_training_state(folder)
        if self._stream is not None:
            (folder / STREAM_STATE.format(self.args.process_index)).write_text(json.dumps(self._stream.state()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the named terms' means since the last log, over all processes, and the speed."""
        self._read_guard()
        if "loss" in logs and self._terms:
            sums, counts = self.accelerator.reduce(torch.stack(list(self._terms.values())), "sum").unbind(1)
            logs.update(zip(self._terms, (sums / counts).tolist()))
            self._terms = {}
        now = time.perf_counter()
        if "loss" in logs:
            last_step, last_time = self._last_log
            speed = (self.state.global_step - last_step) * self.args.images_per_step / (now - last_time)
            logs["images_per_second"] = float(f"{speed:.4g}")  # a slow machine's is not 0
            logs["data_wait_share"] = round(min(1.0, self._data_wait / (now - last_time)), 3)
        if self._last_log is not None:
            self._last_log, self._data_wait = (self.state.global_step, now), 0.0
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

    def own_share(self, dataset: Dataset) -> list[int]:
        """The rows that this process evaluates.

        Every process has equally many, the last ones anew from the start: sharded models run in step.
        """
        rank, world = self.args.process_index, self.args.world_size
        return [(rank + step * world) % len(dataset) for step in range(-(-len(dataset) // world))]

    @property
    def publisher(self) -> Publisher:
        """The callback that publishes.

        Raises:
            ValueError: there is none.
        """
        found = [callback for callback in self.callback_handler.callbacks if isinstance(callback, Publisher)]
        if not found:
            raise ValueError(
                "this trainer has no callback that publishes: add one, e.g. hgkd_hf.hub.StudentPublisher(trainer), or "
                "leave push_to_hub out."
            )
        return found[0]

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """`publisher.push_to_hub`."""
        return self.publisher.push_to_hub(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """`publisher.create_model_card`."""
        self.publisher.create_model_card(*args, **kwargs)

"""The callbacks of every training: seeds, signals, epochs, the log's file, warnings; and what a publishing one is."""

from __future__ import annotations

import hashlib
import logging
import math
import multiprocessing
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from transformers import TrainerCallback, set_seed

from ..checkpoints.folders import RunStopped
from ..data import StreamingDistillationDataset
from ..methods.base.distiller import Distiller

logger = logging.getLogger(__name__)

# 128 + SIGTERM, as of a process that the signal killed: what requeueing schedulers take for "not the job's fault".
REQUEUE_EXIT_CODE = 128 + signal.SIGTERM

# A collapse is seen beside the network's own start: what is a healthy spread depends on the network (`feature_std`).
# Of its first value, healthy runs kept 61 % or more; a ResNet-10 trained to make all images alike had 22 % after 30
# steps, 8 % after 120. Below the other two all images are one point, or one line.
COLLAPSED_SHARE, COLLAPSED_STD, COLLAPSED_RANK = 0.25, 1e-3, 1.5


@contextmanager
def warn_only(what: str) -> Iterator[None]:
    """Let a failure be a warning that names `what`: what only tells of a run must not end it."""
    try:
        yield
    except Exception as error:
        logger.warning("%s could not be written (%s: %s); the run continues.", what, type(error).__name__, error)


class Publisher(TrainerCallback, ABC):
    """A callback that publishes what is trained: the trainer hands `push_to_hub` and `create_model_card` on to it.

    `hub` has one for students; the trainer knows no more of the Hub than this.
    """

    @abstractmethod
    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Publish the model as it is now."""

    @abstractmethod
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the folder that would be published."""


class SeedEachStep(TrainerCallback):
    """Makes everything random in a step (dropout, drop path, masks on the device) a function of (seed, step, rank).

    So there are no generator states to save, and neither evaluations nor the data loader's own draws move them.
    """

    def on_step_begin(self, args, state, control, **kwargs):
        """Seed all generators."""
        digest = hashlib.blake2b(f"{args.seed}/{state.global_step}/{args.process_index}".encode(), digest_size=4)
        set_seed(int.from_bytes(digest.digest(), "big"))


class StopOnSignal(TrainerCallback):
    """On SIGTERM: finish the step, save a checkpoint, and exit with `REQUEUE_EXIT_CODE`.

    All processes agree on the step, whichever of them got the signal.
    """

    def __init__(self):
        self.received = self.stopping = False
        self._group: dist.ProcessGroup | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen in this block, and not after it, however it ends; in a thread nothing can be listened to."""
        self.received = self.stopping = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def receive(number, frame):
            self.received = True

        previous = signal.signal(signal.SIGTERM, receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)  # None: it was not Python's

    def on_train_begin(self, args, state, control, **kwargs):
        """Of several processes, make the group in which they agree: on the CPU, lest the device be waited for."""
        if args.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint if any process got the signal."""
        received = torch.tensor(float(self.received))
        if self._group is not None:
            dist.all_reduce(received, group=self._group)
        if received:
            self.stopping = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """An epoch that is cut short is none to evaluate or save once more."""
        if self.stopping:
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args, state, control, **kwargs):
        """If a signal came, leave. By now the loop is done and its loader's workers have ended.

        Raises:
            SystemExit: with `REQUEUE_EXIT_CODE`.
        """
        if self.stopping:
            if state.is_world_process_zero:
                step = state.global_step
                logger.warning("SIGTERM: saved checkpoint-%d; the same command with --resume continues.", step)
            raise SystemExit(REQUEUE_EXIT_CODE)


def outlive_signal(worker_id: int) -> None:
    """For a loader's workers: the first SIGTERM is to the whole job, whose main process still needs batches."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def end_workers(others: Collection[BaseProcess]) -> None:
    """End the children of this process but `others` at once: workers that outlive a SIGTERM keep it from exiting."""
    while workers := [child for child in multiprocessing.active_children() if child not in others]:
        with suppress(RuntimeError):  # by which torch tells that a worker was killed
            for worker in workers:
                worker.kill()
                worker.join()


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
        """Of a stream, which `Trainer` believes to start anew when a run is resumed, correct the epoch."""
        if isinstance(self.dataset, StreamingDistillationDataset):
            state.epoch = state.global_step / state.max_steps


class TrainingProgress(TrainerCallback):
    """Tells a distiller before every step which share of the steps is done: a function of the step alone.

    Args:
        model: the distiller, not wrapped.
    """

    def __init__(self, model: Distiller):
        self.model = model

    def on_step_begin(self, args, state, control, **kwargs):
        """Set `model.progress`."""
        self.model.progress = state.global_step / state.max_steps


class CollapseWarning(TrainerCallback):
    """Warns when an evaluation finds that all images get nearly the same features."""

    first: tuple[float, float] | None = None  # spread and rank of the first evaluation; of a resumed run its own first

    def on_evaluate(self, args, state, control, metrics: dict[str, Any] | None = None, **kwargs):
        """Look at the features' spread and rank."""
        values = {name.partition("_feature_")[2]: value for name, value in (metrics or {}).items()}
        std, rank = values.get("std", math.inf), values.get("rank", math.inf)
        if self.first is None and math.isfinite(std):
            self.first = std, rank
        first_std, first_rank = self.first or (math.nan, math.nan)
        collapsed = std < COLLAPSED_SHARE * first_std or rank < min(COLLAPSED_RANK, first_rank)
        # `not >=` also catches NaN.
        if state.is_world_process_zero and (collapsed or not std >= COLLAPSED_STD):
            logger.warning(
                "The student has collapsed or is about to: at step %d its features of different images are nearly "
                "the same (spread %.3g, at the first evaluation %.3g; effective rank %.3g). Lower the learning rate, "
                "or check the teacher and the images.",
                state.global_step,
                std,
                first_std,
                rank,
            )


class SkippedImagesLimit(TrainerCallback):
    """Ends a run in which too many images cannot be read.

    Args:
        dataset: has `num_skipped`, `skipped_share` and `skipped_log`; others are not watched.
        max_share: of the images, or of those read so far from a stream.
    """

    def __init__(self, dataset: Any, max_share: float):
        self.dataset, self.max_share = dataset, max_share

    def on_step_end(self, args, state, control, **kwargs):
        """Compare the share with the limit.

        Raises:
            RunStopped: it is above.
        """
        share = getattr(self.dataset, "skipped_share", 0.0)
        if share > self.max_share:
            where = f" (named in {self.dataset.skipped_log})" if self.dataset.skipped_log else ""
            raise RunStopped(
                f"{share:.1%} of the images cannot be read{where}, more than --max_skipped_share {self.max_share}: "
                "repair or remove them, or raise the limit."
            )

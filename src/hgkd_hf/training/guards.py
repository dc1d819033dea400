"""What watches a run: signals, numbers that are no numbers, loss spikes, collapse, images that cannot be read."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from ..checkpoints.folders import RunStopped

logger = logging.getLogger(__name__)

# 128 + SIGTERM, as of a process that the signal killed: what requeueing schedulers take for "not the job's fault".
REQUEUE_EXIT_CODE = 128 + signal.SIGTERM

# A healthy student has a spread near 1 and a rank of tens; see evaluation.representation.
COLLAPSED_STD = 0.05
COLLAPSED_RANK = 1.5


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

    def on_train_begin(self, args, state, control, **kwargs):
        """Listen from now on."""

        def receive(number, frame):
            self.received = True

        self.previous = signal.signal(signal.SIGTERM, receive)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint if any process got the signal."""
        received = torch.tensor(float(self.received), device=args.device)
        if args.world_size > 1:
            dist.all_reduce(received)
        if received:
            self.stopping = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """An epoch that is cut short is none to evaluate or save once more."""
        if self.stopping:
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args, state, control, **kwargs):
        """Listen no more; if a signal came, leave. By now the loop is done and its loader's workers have ended.

        Raises:
            SystemExit: with `REQUEUE_EXIT_CODE`.
        """
        signal.signal(signal.SIGTERM, self.previous)
        if self.stopping:
            if state.is_world_process_zero:
                step = state.global_step
                logger.warning("SIGTERM: saved checkpoint-%d; the same command with --resume goes on.", step)
            raise SystemExit(REQUEUE_EXIT_CODE)


def outlive_signal(worker_id: int) -> None:
    """For a loader's workers: the first SIGTERM is to the whole job, whose main process still needs batches."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


class NonFiniteGuard:
    """Skips optimizer steps whose gradient is not finite, up to a limit.

    Gradients are the same in all processes, so that all decide alike. What such a forward may have left in the
    model's buffers (running statistics) is taken back.

    Args:
        model: the model in training.
        limit: so many steps may be skipped in this process's life.
        record: JSON-lines file to which each skipped step is written: step, loss, gradient norm, sample indices.
    """

    def __init__(self, model: nn.Module, limit: int, record: Path):
        self.limit, self.record, self.skipped = limit, record, 0
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._good = [buffer.clone() for buffer in self._buffers]

    def remember(self) -> None:
        """Keep the buffers as they are, because the step that ends here was good."""
        for good, buffer in zip(self._good, self._buffers):
            good.copy_(buffer)

    def skip(self, step: int, loss: float, grad_norm: float, samples: list[int], write: bool) -> None:
        """Count a step that is being skipped and take its buffers back.

        Args:
            step: number of steps before it.
            loss: this process's loss.
            grad_norm: norm of the gradient, not finite.
            samples: `sample_index` of the step's images, in all processes.
            write: whether this process writes the record.

        Raises:
            RunStopped: the limit is passed.
        """
        self.skipped += 1
        for good, buffer in zip(self._good, self._buffers):
            buffer.copy_(good)
        if write:
            # As text, since JSON has no NaN.
            entry = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "sample_index": samples}
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with self.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            logger.warning("Step %d skipped: its loss is %s, its gradient's norm %s.", step, loss, grad_norm)
        if self.skipped > self.limit:
            raise RunStopped(
                f"{self.skipped} steps had a loss or gradient that is not finite, more than --max_non_finite_steps "
                f"{self.limit}: their images are named in {self.record}; lower --base_learning_rate, or train in "
                "float32 or bfloat16, and go on with --resume."
            )


class LossSpikes:
    """Tells which losses stand out of a running mean by more than `deviations` of its standard deviations.

    Mean and variance are exponential ones over about 100 steps; the first 50 of a process's life only feed them.
    """

    def __init__(self, deviations: float = 6.0):
        self.deviations, self.steps, self.mean, self.variance = deviations, 0, 0.0, 0.0

    def is_spike(self, loss: float) -> bool:
        """Take a step's loss in; whether it stood out."""
        spike = self.steps >= 50 and loss > self.mean + self.deviations * math.sqrt(self.variance)
        self.steps += 1
        weight = max(0.01, 1 / self.steps)
        difference = loss - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)
        return spike


class CollapseWarning(TrainerCallback):
    """Says in plain words when an evaluation finds that all images get nearly the same features."""

    def on_evaluate(self, args, state, control, metrics: dict[str, Any] | None = None, **kwargs):
        """Look at the features' spread and rank."""
        values = {name.partition("_feature_")[2]: value for name, value in (metrics or {}).items()}
        std, rank = values.get("std", math.inf), values.get("rank", math.inf)
        # `not >=` also catches NaN.
        if state.is_world_process_zero and (not std >= COLLAPSED_STD or not rank >= COLLAPSED_RANK):
            logger.warning(
                "The student has collapsed or is about to: at step %d its features of different images are nearly "
                "the same (spread %.3g, healthy about 1; effective rank %.3g). Lower the learning rate, or check the "
                "teacher and the images.",
                state.global_step,
                std,
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
                "mend or remove them, or raise the limit."
            )


def finite_sum(total: Tensor | None, value: Tensor) -> Tensor:
    """Running (sum, count) of a scalar's finite values, shape (2,) float32."""
    value = value.detach().float()
    finite = value.isfinite()
    entry = torch.stack([torch.where(finite, value, 0), finite.float()])
    return entry if total is None else total + entry

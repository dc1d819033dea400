"""What a step's numbers tell: gradients that are not finite, losses that stand out."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.folders import RunStopped

logger = logging.getLogger(__name__)


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


def finite_sum(total: Tensor | None, value: Tensor) -> Tensor:
    """Running (sum, count) of a scalar's finite values, shape (2,) float32."""
    value = value.detach().float()
    finite = value.isfinite()
    entry = torch.stack([torch.where(finite, value, 0), finite.float()])
    return entry if total is None else total + entry

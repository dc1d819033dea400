"""What a step's numbers tell: losses and gradients that are not finite, losses that stand out."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..checkpoints.folders import RunStopped

logger = logging.getLogger(__name__)


class KeptBuffers:
    """A model's buffers, running statistics above all, as they were before a step.

    On the device and without waiting for it, in a few kernels for each type of number.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._groups: list[list[Tensor]] | None = None
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Keep them as they are."""
        if self._groups is None:  # not before the training, until which they may still be moved
            groups: dict[tuple, list[Tensor]] = {}
            for buffer in self.model.buffers():
                groups.setdefault((buffer.device, buffer.dtype), []).append(buffer)
            self._groups = list(groups.values())
        self._kept = [_flat(group) for group in self._groups]

    def restore(self, wanted: Tensor) -> None:
        """Take them back where `wanted`, a scalar on the device, is not 0."""
        for group, kept in zip(self._groups, self._kept):
            values = torch.where(wanted.bool().to(kept.device), kept, _flat(group))
            pieces = values.split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [piece.view_as(buffer) for piece, buffer in zip(pieces, group)])


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@dataclass
class _Step:
    """A step that was judged on the device; `numbers` are unfit (1) or not (0), loss and gradient norm."""

    number: int
    numbers: Tensor
    samples: list[Tensor]


class NonFiniteGuard:
    """Skips steps whose loss or gradient is not finite, up to a limit, without waiting for the device.

    A skipped step leaves weights, moments and buffers as they were. Whether there was one is read later, in `read`.
    The norm is that of the gradient that all processes share, and their losses are reduced, so that all decide alike.

    Fused optimizers skip by themselves if they are told by a scalar on the device, as `torch.amp.GradScaler` does
    (`found_inf`). For others, with fp16 and with FSDP, the device is waited for in every step.

    Args:
        model: the model in training.
        accelerator: of its trainer.
        limit: so many steps may be skipped in this process's life.
        record: JSON-lines file to which each skipped step is written: step, loss, gradient norm, sample indices.
    """

    UNREAD = 50  # steps, at most: then they are read though nothing is logged

    def __init__(self, model: nn.Module, accelerator: Accelerator, limit: int, record: Path):
        self.accelerator, self.limit, self.record, self.skipped = accelerator, limit, record, 0
        self._buffers = KeptBuffers(model)
        self._losses: list[Tensor] = []  # of the running step's batches, as are their samples
        self._samples: list[Tensor] = []
        self._steps: list[_Step] = []

    def begin_batch(self) -> None:
        """Before the forward of each batch."""
        if not self._losses:
            self._buffers.keep()

    def end_batch(self, loss: Tensor, samples: Tensor | None) -> None:
        """After it: this process's loss, and the `sample_index` of its images."""
        self._losses.append(loss.detach().float())
        if samples is not None:
            self._samples.append(samples)

    def judge(self, step: int, grad_norm: Tensor | float, optimizer: AcceleratedOptimizer) -> None:
        """Before the optimizer's step: see that nothing comes of it if a number is not finite.

        Args:
            step: number of steps before it.
            grad_norm: the norm of the gradient, which fp16's scale is taken out of.
            optimizer: whose step comes next.
        """
        loss = torch.stack(self._losses).mean()
        fsdp = self.accelerator.distributed_type == DistributedType.FSDP
        norm = torch.as_tensor(float(grad_norm) if fsdp else grad_norm, device=loss.device).detach().float()
        unfit = (~(loss.isfinite() & norm.isfinite())).float()
        unfit = self.accelerator.reduce(unfit, "sum").clamp(max=1)  # optimizers look for exactly 1
        self._buffers.restore(unfit)
        scaler = self.accelerator.scaler
        if scaler is None and not fsdp and getattr(optimizer.optimizer, "_step_supports_amp_scaling", False):
            optimizer.optimizer.grad_scale, optimizer.optimizer.found_inf = None, unfit
        elif unfit:
            optimizer.zero_grad(set_to_none=True)  # an optimizer leaves parameters without gradients alone
            if scaler is not None and scaler.get_scale() >= 1:
                unfit = torch.zeros_like(unfit)  # fp16 is searching for its scale: such steps do not count
        self._steps.append(_Step(step, torch.stack([unfit, loss, norm]), self._samples))
        self._losses, self._samples = [], []

    @property
    def is_full(self) -> bool:
        """Whether it is time to read."""
        return len(self._steps) >= self.UNREAD

    def read(self) -> list[tuple[int, float]]:
        """Wait for the device, and record the steps since the last time that were skipped; all processes must call it.

        Returns:
            (number of steps before, loss) of those that were not.

        Raises:
            RunStopped: the limit is passed.
        """
        steps, self._steps = self._steps, []
        good = []
        numbers = torch.stack([step.numbers for step in steps]).tolist() if steps else []
        for step, (unfit, loss, norm) in zip(steps, numbers):
            if unfit:
                self._skip(step, loss, norm)
            elif math.isfinite(loss):  # not while fp16 searches for its scale
                good.append((step.number, loss))
        return good

    def _skip(self, step: _Step, loss: float, norm: float) -> None:
        samples = gather_object(torch.cat(step.samples).tolist() if step.samples else [])
        self.skipped += 1
        if self.accelerator.is_main_process:
            # As text, since JSON has no NaN.
            entry = {"step": step.number, "loss": str(loss), "grad_norm": str(norm), "sample_index": samples}
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with self.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            logger.warning("Step %d skipped: its loss is %s, its gradient's norm %s.", step.number, loss, norm)
        if self.skipped > self.limit:
            raise RunStopped(
                f"{self.skipped} steps had a loss or gradient that is not finite, more than --max_non_finite_steps "
                f"{self.limit}: their images are named in {self.record}; lower --base_learning_rate, or train in "
                "float32 or bfloat16, and continue with --resume."
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

"""The arguments of a training, and what their word `auto` means."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from .memory_estimate import USABLE_SHARE, estimate_memory, free_memory, gigabytes, local_processes
from .settings import TrainingSettings

AUTO = "auto"
PRECISIONS = ("float32", "bf16", "fp16")
# Fields that take the word: what is written for them in a run's recipe is what the word came to.
AUTO_FIELDS = ("per_device_train_batch_size", "dataloader_num_workers", "precision")
BATCH_SIZES = tuple(2**exponent for exponent in range(9))  # of these the word chooses
MAX_AUTO_WORKERS = 16  # each costs memory, and so many feed any device


@dataclass
class DistillationArguments(TrainingSettings, TrainingArguments):
    """`TrainingArguments` with the fields and defaults of `TrainingSettings`.

    The learning rate is `base_learning_rate * sqrt(images per step / 256)`, the rule of Adam's kind of optimizers
    (arXiv:2205.10287), unless `learning_rate` is given.

    Batch size, workers and precision may be `"auto"`. Workers and precision are settled at once, the batch size by
    `settle_batch_size`, which needs to know what is trained.

    Attributes:
        auto: the fields that were `"auto"`.

    Raises:
        ValueError: one of them is neither a number nor the word, or there is no such precision.
    """

    def __post_init__(self):
        if not torch.accelerator.is_available():
            # Without it, each process of several on a machine without accelerator believes that it is alone.
            self.use_cpu = True
        if self.data_seed is None:
            self.data_seed = self.seed  # else the order of samples would follow torch's seed of the moment
        self.auto = tuple(name for name in AUTO_FIELDS if getattr(self, name) == AUTO)
        self._settle_workers()
        self._settle_precision()
        self._scaled = self.learning_rate is None
        if self._scaled:
            self.learning_rate = 0.0
        super().__post_init__()
        if self.precision == "float32":
            self.mixed_precision = "no"  # whatever the launcher was configured for
        self._scale_learning_rate()

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step, over all processes and accumulated batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What mixed precision computes in; None: there is none."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mixed_precision)

    def settle_batch_size(
        self, model: nn.Module, dataset: Dataset, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    ) -> None:
        """Where it is `"auto"`: the largest power of two whose step fits into the free memory, in all processes alike.

        All processes must call it. The dataset has at least a step's images.

        Raises:
            ValueError: not even one image fits.
        """
        if self.per_device_train_batch_size != AUTO:
            return
        estimate = estimate_memory(model, dataset, collate, self.device, self.autocast_dtype)
        room = USABLE_SHARE * free_memory(self.device)
        most = BATCH_SIZES[-1]
        if hasattr(dataset, "__len__"):
            most = max(1, len(dataset) // (self.gradient_accumulation_steps * self.world_size * max(1, self.n_gpu)))
        fitting = [size for size in BATCH_SIZES if size <= most and estimate.step(size) <= room]
        size = min(gather_object([max(fitting, default=0)]))
        if not size:
            raise ValueError(
                f"a step with one image needs {gigabytes(estimate.step(1))}, but {gigabytes(room)} can be used: "
                "choose a smaller student, decoder or teacher, or try a number for --per_device_train_batch_size."
            )
        self.per_device_train_batch_size = size
        self._scale_learning_rate()

    def describe_auto(self) -> str:
        """What the fields that were `"auto"` have come to, in words."""
        return ", ".join(f"{name} {getattr(self, name)}" for name in self.auto)

    def _settle_workers(self) -> None:
        for name in ("per_device_train_batch_size", "dataloader_num_workers"):
            value = getattr(self, name)
            if isinstance(value, str) and value != AUTO:
                raise ValueError(f"{name} is {value!r}: give a number, or {AUTO} (--{name}).")
        if self.dataloader_num_workers == AUTO:
            self.dataloader_num_workers = max(1, min(MAX_AUTO_WORKERS, available_cores() // local_processes()))

    def _settle_precision(self) -> None:
        if self.precision is None:
            return
        if self.precision not in (AUTO, *PRECISIONS):
            raise ValueError(
                f"precision is {self.precision!r}: choose one of {', '.join(PRECISIONS)}, {AUTO} (--precision)."
            )
        if self.precision == AUTO:
            self.precision = "bf16" if has_native_bf16(self.use_cpu) else "float32"
        for name in ("bf16", "fp16"):
            setattr(self, name, self.precision == name)

    def _scale_learning_rate(self) -> None:
        if self._scaled and self.per_device_train_batch_size != AUTO:
            self.learning_rate = self.base_learning_rate * math.sqrt(self.images_per_step / 256)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def has_native_bf16(use_cpu: bool) -> bool:
    """Whether the training's device has instructions for bfloat16, and does not only imitate them."""
    if use_cpu:
        return torch.cpu._is_avx512_bf16_supported()  # whatever has AMX has these too
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)

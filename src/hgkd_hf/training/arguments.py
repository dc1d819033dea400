"""The arguments of a training, and what their word `auto` means."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from .memory_estimate import USABLE_SHARE, estimate_memory, free_memory, gigabytes, local_processes

AUTO = "auto"
PRECISIONS = ("float32", "bf16", "fp16")
# Fields that take the word: what is written for them in a run's recipe is what the word came to.
AUTO_FIELDS = ("per_device_train_batch_size", "dataloader_num_workers", "precision")
BATCH_SIZES = tuple(2**exponent for exponent in range(9))  # of these the word chooses
MAX_AUTO_WORKERS = 16  # each costs memory, and so many feed any device


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` with the field's defaults for masked pre-training, and a few fields more.

    The learning rate is `base_learning_rate * images per step / 256`, as in MAE and SparK, unless `learning_rate` is
    given.

    Batch size, workers and precision may be `"auto"`. Workers and precision are settled at once, the batch size by
    `settle_batch_size`, which needs to know what is trained.

    Attributes:
        auto: the fields that were `"auto"`.

    Raises:
        ValueError: one of them is neither a number nor the word, or there is no such precision.
    """

    _argument_group_name = "training"  # the heading of these flags in --help

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
    max_non_finite_steps: int = field(
        default=10, metadata={"help": "Steps with a loss or gradient that is not finite are skipped, up to so many."}
    )
    max_skipped_share: float = field(
        default=0.1, metadata={"help": "Share of the images that may be unreadable before the run ends."}
    )
    allow_changes: bool = field(
        default=False, metadata={"help": "Let --resume go on though teacher, student, data or masks have changed."}
    )

    license: str | None = field(
        default=None, metadata={"help": "Of the published student; needed where teacher and data do not decide it."}
    )
    precision: str | None = field(
        default=None,
        metadata={"help": "float32 | bf16 | fp16 | auto: bf16 where the device has it. Overrides --bf16, --fp16."},
    )

    output_dir: str = field(default="runs/distillation", metadata={"help": "The run's folder."})
    per_device_train_batch_size: int | str = field(
        default=64, metadata={"help": "Images of a batch; auto: as many as the free memory holds, up to 256."}
    )
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images of a batch of evaluation."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "How the learning rate falls: cosine, linear, constant_with_warmup, ..."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps in which the learning rate rises; below 1: their share of all."}
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "Of weights; biases, norms and mask tokens have none."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay of AdamW's second moment."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Longer gradients are cut to this length."})
    logging_steps: float = field(default=10, metadata={"help": "Steps from log to log; below 1: a share of all."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave it: samples are what models take."})
    dataloader_num_workers: int | str = field(
        default=0, metadata={"help": "Processes that read images; auto: the cores that each training process has."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Leave it: every parameter of a distiller is used."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept, the best not counted in."}
    )

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
            self.learning_rate = self.base_learning_rate * self.images_per_step / 256


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def has_native_bf16(use_cpu: bool) -> bool:
    """Whether the training's device has instructions for bfloat16, and does not only imitate them."""
    if use_cpu:
        return torch.cpu._is_avx512_bf16_supported()  # whatever has AMX has these too
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)

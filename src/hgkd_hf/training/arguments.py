"""The arguments of a training, and what their word `auto` means."""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)

AUTO = "auto"
PRECISIONS = ("float32", "bf16", "fp16")
# Fields that take the word: what is written for them in a run's recipe is what the word came to.
AUTO_FIELDS = ("per_device_train_batch_size", "dataloader_num_workers", "precision")
# A run may be resumed with others of these: they decide where it runs, what is logged, measured, kept and published.
FREE_TO_CHANGE = frozenset(
    {
        # What they come to is compared: learning rate, precision, images of a step and of a batch.
        *("base_learning_rate", "precision", "bf16", "fp16", "sync_batch_norm"),
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
        # Where and how it is computed.
        *("use_cpu", "bf16_full_eval", "fp16_full_eval", "torch_compile", "torch_compile_backend"),
        *("torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "torch_empty_cache_steps"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "full_determinism", "use_cache", "local_rank", "parallelism_config"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "debug", "skip_memory_metrics"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        # Logs, evaluation, checkpoints, guards.
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
        *("include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name"),
        *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "output_dir"),
        *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only"),
        *("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        *("include_for_metrics", "batch_eval_metrics", "metric_for_best_model", "greater_is_better"),
        *("knn_k", "knn_temperature", "do_train", "do_eval", "do_predict", "save_only_model", "save_strategy"),
        *("save_steps", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "resume_from_checkpoint"),
        *("restore_callback_states_from_checkpoint", "max_non_finite_steps", "max_skipped_share", "allow_changes"),
        # The Hub.
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "license"),
    }
)
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
        self.check()
        if not torch.accelerator.is_available():
            # Without it, each process of several on a machine without accelerator believes that it is alone.
            self.use_cpu = True
        if self.allow_changes in (["true"], ["false"]):  # in recipes of earlier versions
            self.allow_changes = ["all"] if self.allow_changes == ["true"] else []
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
        if self.mixed_precision == "bf16":
            warn_of_slow_bf16(self.use_cpu, "--precision float32")
        self._scale_learning_rate()

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step, over all processes and accumulated batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def images_per_batch(self) -> int:
        """Images that BatchNorm sees together: of this process, or of all that share its statistics."""
        return self.train_batch_size * (self.world_size if self.sync_batch_norm else 1)

    def identity(self) -> dict[str, Any]:
        """The arguments that decide what is learned, and what they come to; see `checkpoints.identity`.

        All count that are not in `FREE_TO_CHANGE`, so that new ones of `TrainingArguments` count until somebody has
        looked at them.
        """
        settings = {name: value for name, value in self.to_dict().items() if name not in FREE_TO_CHANGE}
        if self.max_steps > 0:
            del settings["num_train_epochs"]  # is ignored
        precision = {"no": "float32"}.get(self.mixed_precision, self.mixed_precision)
        batches = {"images_per_step": self.images_per_step, "images_per_batch": self.images_per_batch}
        return settings | batches | {"precision": precision}

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

    def choose_best_by(self, metric: str) -> None:
        """Let the best model be the one with the largest `metric`, unless another metric was asked for."""
        # "loss", which no evaluation here measures, is what transformers puts where the best model is kept.
        if self.metric_for_best_model in (None, "loss"):
            self.metric_for_best_model, self.greater_is_better = metric, True

    def describe(self) -> dict[str, str]:
        """The start summary: images of a step, learning rate, and what the fields that were `"auto"` have come to."""
        step = f"{self.images_per_step} images a step on {self.world_size} process(es)"
        facts = {"training": f"{step}, learning rate {self.learning_rate:.2e}"}
        if self.auto:
            facts["auto"] = ", ".join(f"{name} {getattr(self, name)}" for name in self.auto)
        return facts

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


def warn_of_slow_bf16(use_cpu: bool, remedy: str) -> None:
    """Log a warning where the device only imitates bfloat16; `remedy` is the flag that avoids it."""
    if not has_native_bf16(use_cpu):
        logger.warning("This device imitates bfloat16, many times slower than it computes float32: try %s.", remedy)

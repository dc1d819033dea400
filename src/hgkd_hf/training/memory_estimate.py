"""How much memory a training step takes, by an estimate, and how much there is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import Dataset

from ..data import model_inputs
from ..evaluation.features import eval_mode
from ..methods.base.distiller import Distiller

# Of the free memory, what a step may fill: teacher, kernels and allocators take some that is not estimated.
USABLE_SHARE = 0.8
CGROUP, PROCESS_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process. An estimate: gradients of activations, buffers of kernels and the like come on top.

    Attributes:
        weights: of model and teacher; on the device already when the rest is asked for.
        gradients: of what is trained.
        optimizer: AdamW's two moments.
        kept: kept from forward to backward, whatever the batch.
        kept_per_image: the same for each image of a batch.
    """

    weights: int
    gradients: int
    optimizer: int
    kept: int
    kept_per_image: int

    def activations(self, images: int) -> int:
        """Kept from forward to backward of a batch."""
        return self.kept + images * self.kept_per_image

    def step(self, images: int) -> int:
        """What a step with a batch of `images` needs beside the weights."""
        return self.gradients + self.optimizer + self.activations(images)

    def describe(self, images: int) -> str:
        """In words, for a batch of `images`."""
        return (
            f"about {gigabytes(self.weights + self.step(images))} a process: weights {gigabytes(self.weights)}, "
            f"gradients {gigabytes(self.gradients)}, optimizer {gigabytes(self.optimizer)}, activations "
            f"{gigabytes(self.activations(images))} for {images} images"
        )


def estimate_memory(
    model: nn.Module,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> MemoryEstimate:
    """Run two small batches forward, and draw a line through what they keep for their backward.

    Activation checkpointing is left out of account: with it, less is kept than estimated. The model ends on `device`,
    with its running statistics as before.

    Args:
        model: called with a batch, gives an output with `loss`.
        dataset: of its samples the first four are read.
        collate: samples to a batch.
        device: of the training.
        dtype: of mixed precision, None for float32.
    """
    model.to(device)
    samples = (list(islice(iter(dataset), 4)) * 4)[:4]
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
    kept = {}
    with trial(model), autocast:
        for images in (2, 4):  # not 1, of which BatchNorm knows no variance
            batch = model_inputs(dataset, send_to_device(collate(samples[:images]), device))
            batch.pop("sample_index", None)
            kept[images] = _kept_for_backward(model, batch)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    modules = [model]
    if isinstance(model, Distiller) and model.teacher is not None:  # a teacher is no part of its model
        modules.append(model.teacher)
    per_image = (kept[4] - kept[2]) // 2
    return MemoryEstimate(
        weights=sum(value.nbytes for module in modules for value in module.state_dict().values()),
        gradients=trained,
        optimizer=2 * trained,
        kept=max(0, kept[2] - 2 * per_image),
        kept_per_image=per_image,
    )


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Training mode; afterwards modes and buffers are as before."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    for value in model.buffers():
        if value.is_floating_point() and not value.any():
            value.fill_(1)  # RoB's prototypes, which are fitted when the training begins: a forward refuses zeros
    with eval_mode(model):  # for the modes that it gives back
        model.train()
        yield
    for name, value in model.named_buffers():
        value.copy_(buffers[name])


def _kept_for_backward(model: nn.Module, batch: dict[str, Any]) -> int:
    """Bytes that a forward saves for its backward, without the weights themselves."""
    weights = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()  # once, however many operations save it
        return tensor.detach()

    with saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(**batch)  # held until all is counted, lest an address be given anew
    del outputs
    return sum(saved.values())


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on `device`: of a machine's own memory its share, within its container.

    `LOCAL_WORLD_SIZE`, which launchers set, is the number of processes that share the machine.
    """
    backend = torch.get_device_module(device)
    if hasattr(backend, "mem_get_info"):
        backend.empty_cache()
        return backend.mem_get_info(device)[0]
    free = min([psutil.virtual_memory().available, *map(_free_in, _control_groups())])
    return max(0, free) // local_processes()


def _control_groups() -> Iterator[Path]:
    """The folders of this process's control groups (cgroup v2), from its own to the outermost that it sees."""
    lines = PROCESS_CGROUP.read_text().splitlines() if PROCESS_CGROUP.is_file() else []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    path = CGROUP / own.strip("/")
    while path.is_relative_to(CGROUP):
        if (path / "memory.max").is_file():
            yield path
        path = path.parent


def _free_in(group: Path) -> float:
    """Bytes that a control group may still take, with those of its page cache, which give way."""
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return math.inf
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cache = sum(int(statistics.get(name, 0)) for name in ("active_file", "inactive_file", "slab_reclaimable"))
    return int(limit) - int((group / "memory.current").read_text()) + cache


def local_processes() -> int:
    """Processes of this run on this machine, as launchers tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def gigabytes(count: int) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"

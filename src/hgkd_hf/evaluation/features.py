"""One feature vector an image, taken from a frozen model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Features:
    """The features of a set of images, and their labels where the set has any.

    Attributes:
        features: (N, D) float32 on the CPU, all finite.
        labels: (N,) long on the CPU, or None.
        rows: (N,) long on the CPU, the row of each image in its dataset, or None: they are the rows in order.
        shared: these are of this process's share of the images, and other processes have others: see `shares`.

    Raises:
        ValueError: if a shape does not fit, or a feature is NaN or infinite.
    """

    features: Tensor
    labels: Tensor | None = None
    rows: Tensor | None = None
    shared: bool = False

    def __post_init__(self):
        if self.features.ndim != 2:
            raise ValueError(f"features have shape {tuple(self.features.shape)}, expected (N, D).")
        if self.labels is not None and self.labels.shape != self.features.shape[:1]:
            raise ValueError(f"labels have shape {tuple(self.labels.shape)}, expected ({len(self)},): one an image.")
        # A NaN compares false with everything, so it would turn into a plausible accuracy further on.
        if not self.features.isfinite().all():
            raise ValueError("features contain NaN or infinite values: the model has diverged or was fed such values.")

    def __len__(self) -> int:
        return len(self.features)

    def row(self, index: int) -> int:
        """The row in its dataset of an image."""
        return index if self.rows is None else int(self.rows[index])

    def select(self, chosen: Tensor) -> Features:
        """Some of the images: their indices (n,) long, or a mask (N,) bool."""
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, features=self.features[chosen], labels=labels, rows=rows[chosen])

    def spread(self, count: int) -> Tensor:
        """The indices of at most `count` images, evenly spread: rows of one class often follow each other."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()

    def each_once(self) -> Features:
        """Every image once, by rows: a dataset gives the next image in place of one that cannot be read."""
        if self.rows is None:
            return self
        order = self.rows.argsort(stable=True)
        rows = self.rows[order]
        return self.select(order[torch.cat([rows.new_ones(1, dtype=torch.bool), rows[1:] != rows[:-1]])])


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put `module` in evaluation mode, and give every submodule its own former mode back, whatever happens."""
    training = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        # Not module.train(): that would also wake a frozen teacher or a frozen BatchNorm inside.
        for submodule, mode in training.items():
            submodule.training = mode


@contextmanager
def full_precision() -> Iterator[None]:
    """Have products of float32 matrices computed in float32, whatever a training asked for (`--tf32`)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def extract_features(
    model_fn: Callable[[Tensor], Tensor],
    dataloader: Iterable[Mapping[str, Tensor]],
    device: torch.device | str,
    *,
    module: nn.Module | None = None,
) -> Features:
    """Run `model_fn` over a dataloader, without gradients and in evaluation mode.

    Only the batches of this process are seen; labels and rows are kept if the batches have them.

    Args:
        model_fn: maps `pixel_values` (B, 3, H, W) on `device` to features (B, D). For a stock model:
            `extract_features(partial(pooled_features, model), dataloader, device, module=model)`.
        dataloader: yields dicts with `pixel_values` (B, 3, H, W) and, optionally, `labels` and `sample_index` (B,).
        device: where `model_fn` expects its input.
        module: what to put in evaluation mode for the duration; `model_fn` itself if that is a module.

    Raises:
        ValueError: if the dataloader is empty, or `model_fn` does not return (B, D).
    """
    if module is None:
        # An empty module stands in for a plain function, whose mode is its own affair.
        module = model_fn if isinstance(model_fn, nn.Module) else nn.Module()
    features, found = [], {"labels": [], "sample_index": []}
    with eval_mode(module):
        for batch in dataloader:
            pixel_values = batch["pixel_values"].to(device)
            output = model_fn(pixel_values)
            if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(pixel_values):
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"model_fn returned {got}, expected a tensor of shape ({len(pixel_values)}, D).")
            features.append(output.float().cpu())
            for name, values in found.items():
                if batch.get(name) is not None:
                    values.append(torch.as_tensor(batch[name]).long().cpu())
    if not features:
        raise ValueError("dataloader yielded no batch: there is nothing to extract features from.")
    return Features(torch.cat(features), *(torch.cat(values) if values else None for values in found.values()))

"""Features that several processes share out: each holds those of its own images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import ImageLoader
from .features import Features, extract_features


def processes() -> tuple[int, int]:
    """(rank, number) of the processes that evaluate together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def total(values: Tensor, shared: bool) -> Tensor:
    """The sum over all processes, on the CPU; without `shared` the values themselves."""
    if not shared:
        return values
    values = values.to(PartialState().device, copy=True)
    dist.all_reduce(values)
    return values.cpu()


def gather(values: Tensor, shared: bool) -> list[Tensor]:
    """(n, ...) of every process, by rank, on the CPU; n may differ."""
    if not shared:
        return [values]
    lengths = torch.zeros(dist.get_world_size(), dtype=torch.long)
    lengths[dist.get_rank()] = len(values)
    lengths = total(lengths, shared).tolist()
    padded = values.new_zeros(max(lengths), *values.shape[1:]).to(PartialState().device)
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length].cpu() for part, length in zip(parts, lengths)]


def count(features: Features) -> int:
    """The number of images of all processes."""
    return int(total(torch.tensor(len(features)), features.shared))


def share_features(
    model_fn: Callable[[Tensor], Tensor],
    dataset: Dataset,
    batch_size: int,
    device: torch.device | str,
    *,
    num_workers: int = 0,
    module: nn.Module | None = None,
) -> Features:
    """Features of every readable image of a dataset, once; of several processes, each gets those of its own share.

    Args:
        model_fn, module: as in `extract_features`.
        dataset: of samples with `sample_index`.
        batch_size, num_workers: of the loader.
        device: of the model.

    Raises:
        ValueError: there are fewer images than processes.
    """
    rank, world = processes()
    if len(dataset) < world:
        raise ValueError(f"{len(dataset)} images cannot be shared out among {world} processes: start fewer.")
    own = range(rank, len(dataset), world)
    loader = ImageLoader(dataset, batch_size, device, sampler=own, num_workers=num_workers)
    part = extract_features(model_fn, loader, device, module=module).each_once()
    if world == 1:
        return part
    # In place of an image that cannot be read comes the next, which another process has too: the first keeps it.
    earlier = torch.cat([part.rows.new_empty(0), *gather(part.rows, True)[:rank]])
    return replace(part.select(~torch.isin(part.rows, earlier)), shared=True)


def whole(features: Features) -> Features:
    """The features of all processes, in the order of their rows, in each of them."""
    if not features.shared:
        return features
    parts = (features.features, features.labels, features.rows)
    return Features(*(None if part is None else torch.cat(gather(part, True)) for part in parts)).each_once()

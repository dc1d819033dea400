"""Batches that reach across processes: what the other processes hold, with the gradient that flows back to them."""

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Every process used these rows in its own loss. The sum, which DDP then divides by the number of processes,
        # makes the gradient that of the mean of the processes' losses.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_batch(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, in the order of their ranks, and where this process's own begin.

    Without `torch.distributed` (or before it is initialised) this is the tensor itself, and 0. Gradients flow back to
    the process that a row came from, so every process must run the backward pass.

    Args:
        tensor: (B, ...), the same shape on every process: all processes wait here for each other.

    Returns:
        (B * processes, ...), and the index of this process's first row.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensor, 0
    return _Gather.apply(tensor.contiguous()), dist.get_rank() * len(tensor)


def shared_generator() -> torch.Generator:
    """A CPU generator that draws alike on all processes: seeded by the first one's global generator.

    Without `torch.distributed` it is seeded by this process's. All processes wait here for each other.
    """
    seed = [int(torch.randint(2**62, ()))]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(seed)
    return torch.Generator().manual_seed(seed[0])

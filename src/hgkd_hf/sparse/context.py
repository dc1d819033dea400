"""The mask of the running forward.

It lives in a context variable, so that no layer and no checkpoint ever holds a mask, threads do not see each other's,
and a network outside `visible(...)` is simply the stock dense network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

from .masking import VisibleCells

if TYPE_CHECKING:
    from .masked import MaskedBackend

_active: ContextVar[MaskedBackend | None] = ContextVar("hgkd_hf_sparse_backend", default=None)


def active_backend() -> MaskedBackend | None:
    """The backend that the sparse layers of this thread compute with now, or None outside `visible`."""
    return _active.get()


@contextmanager
def use_backend(backend: MaskedBackend | None) -> Iterator[MaskedBackend | None]:
    """Let sparse layers compute with `backend` inside the block."""
    token = _active.set(backend)
    try:
        yield backend
    finally:
        _active.reset(token)


def checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """The `context_fn` of `torch.utils.checkpoint`: recomputation in backward sees the mask of its forward.

    Without it the recomputed forward would run dense, since backward happens after `visible` has been left.
    """
    return nullcontext(), use_backend(active_backend())


def recomputing() -> bool:
    """Whether this forward runs inside a backward, as gradient checkpointing lets it."""
    return torch._C._current_graph_task_id() != -1


def visible(cells: VisibleCells, backend: str = "cells") -> AbstractContextManager[MaskedBackend]:
    """Compute a sparsified network on the visible cells of a batch.

    Example:
        >>> with visible(cells) as sparse:
        ...     outputs = backbone(sparse.enter(pixel_values), output_hidden_states=True)
        ...     feature_maps = [sparse.leave(hidden_state) for hidden_state in outputs.hidden_states]

    Args:
        cells: the mask of the batch.
        backend: `"cells"` (fast: only visible cells are computed), `"masked"` (the readable reference) or `"spconv"`
            (cells on the kernels of the optional spconv package).

    Raises:
        ValueError: there is no such backend.
        ImportError: the backend's package is not installed.
    """
    from . import BACKENDS

    if backend not in BACKENDS:
        raise ValueError(f"sparse backend {backend!r} does not exist: choose one of {', '.join(BACKENDS)}.")
    return use_backend(BACKENDS[backend](cells))

"""The backend, and with it the mask, of the running forward.

It lives in a context variable, so that no layer and no checkpoint ever holds a mask, threads do not see each other's,
and a network outside `visible(...)` is simply the stock dense network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

from .backend import Backend

_active: ContextVar[Backend | None] = ContextVar("hgkd_hf_sparse_backend", default=None)


def active_backend() -> Backend | None:
    """The backend that the sparse layers of this thread compute with now, or None outside `visible`."""
    return _active.get()


@contextmanager
def use_backend(backend: Backend | None) -> Iterator[Backend | None]:
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

"""The backends by name, and the block in which a network runs on one of them."""

from __future__ import annotations

from contextlib import AbstractContextManager

from .backend import Backend
from .cells import CellsBackend
from .context import use_backend
from .masked import MaskedBackend
from .masking import VisibleCells
from .spconv import SpconvBackend
from .triton import TritonBackend

BACKENDS: dict[str, type[Backend]] = {
    "cells": CellsBackend,
    "masked": MaskedBackend,
    "spconv": SpconvBackend,
    "triton": TritonBackend,
}


def visible(cells: VisibleCells, backend: str = "cells") -> AbstractContextManager[Backend]:
    """Compute a sparsified network on the visible cells of a batch.

    Example:
        >>> with visible(cells) as sparse:
        ...     outputs = backbone(sparse.enter(pixel_values), output_hidden_states=True)
        ...     feature_maps = [sparse.leave(hidden_state) for hidden_state in outputs.hidden_states]

    Args:
        cells: the mask of the batch.
        backend: `"cells"` (fast: only visible cells are computed), `"masked"` (the readable reference), `"spconv"`
            (cells on the kernels of the optional spconv package) or `"triton"` (on kernels of our own, for CUDA).

    Raises:
        ValueError: there is no such backend.
        ImportError: the backend's package is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"sparse backend {backend!r} does not exist: choose one of {', '.join(BACKENDS)}.")
    return use_backend(BACKENDS[backend](cells))

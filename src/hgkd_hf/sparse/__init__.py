"""A stock CNN on the visible cells of an image only."""

from .cells import CellsBackend
from .context import active_backend, checkpoint_contexts, visible
from .convert import sparsify, to_dense
from .masked import MaskedBackend

BACKENDS = {"cells": CellsBackend, "masked": MaskedBackend}

__all__ = [
    "BACKENDS",
    "CellsBackend",
    "MaskedBackend",
    "active_backend",
    "checkpoint_contexts",
    "sparsify",
    "to_dense",
    "visible",
]

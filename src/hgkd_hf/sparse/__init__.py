"""A stock CNN on the visible cells of an image only."""

from .cells import CellsBackend
from .check import check_exact
from .checkpointing import checkpoint_blocks, uncheckpoint_blocks
from .context import active_backend, checkpoint_contexts, visible
from .convert import sparsify, to_dense
from .masked import MaskedBackend
from .spconv import SpconvBackend

BACKENDS = {"cells": CellsBackend, "masked": MaskedBackend, "spconv": SpconvBackend}

__all__ = [
    "BACKENDS",
    "CellsBackend",
    "MaskedBackend",
    "SpconvBackend",
    "active_backend",
    "check_exact",
    "checkpoint_blocks",
    "checkpoint_contexts",
    "sparsify",
    "to_dense",
    "uncheckpoint_blocks",
    "visible",
]

"""A stock CNN on the visible cells of an image only."""

from .backend import Backend
from .backends import BACKENDS, visible
from .cells import CellsBackend
from .check import check_exact
from .checkpointing import checkpoint_blocks, uncheckpoint_blocks
from .context import active_backend, checkpoint_contexts
from .convert import sparsify, to_dense
from .masked import MaskedBackend
from .spconv import SpconvBackend
from .triton import TritonBackend

__all__ = [
    "BACKENDS",
    "Backend",
    "CellsBackend",
    "MaskedBackend",
    "SpconvBackend",
    "TritonBackend",
    "active_backend",
    "check_exact",
    "checkpoint_blocks",
    "checkpoint_contexts",
    "sparsify",
    "to_dense",
    "uncheckpoint_blocks",
    "visible",
]

"""Backends are one protocol: what layers ask of them is written there, and each has all of it."""

import pytest
import torch

from hgkd_hf.sparse import BACKENDS, Backend, MaskedBackend, layers
from hgkd_hf.sparse.masking import VisibleCells

OPERATIONS = {name for name in vars(Backend) if not name.startswith("_")} - {"enter", "leave"}
LAYERS = [kind for kind in vars(layers).values() if isinstance(kind, type) and issubclass(kind, layers.SparseLayer)]


def test_layers_ask_for_all_operations_and_no_others():
    assert {kind.op for kind in LAYERS if kind is not layers.SparseLayer} == OPERATIONS


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_has_every_operation(name):
    assert Backend in BACKENDS[name].__mro__
    assert not BACKENDS[name].__abstractmethods__


def test_incomplete_backend_is_refused_when_it_is_made():
    class Incomplete(Backend):
        conv2d = MaskedBackend.conv2d

    with pytest.raises(TypeError, match="abstract"):
        Incomplete(VisibleCells(torch.zeros(1, 2, 2, dtype=torch.bool)))

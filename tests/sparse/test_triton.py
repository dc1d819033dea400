"""Backend "triton" in Triton's interpreter, on the CPU: the values of its kernels, not their speed."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from sparse_nets import build, draw_cells, run
from test_sparse_families import FAMILIES
from test_sparse_layers import WINDOWS, check_window
from torch import nn

from hgkd_hf.sparse import visible
from hgkd_hf.sparse.masking import VisibleCells

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # must be set before triton is imported, by torch maybe
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton, which torch for CUDA brings along"
)
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")

CONVOLUTIONS = [name for name, layer in WINDOWS.items() if isinstance(layer, nn.Conv2d) and layer.groups == 1]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="runs in it")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": "", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]


@inside
@pytest.mark.parametrize("block", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, block):
    """Output and gradients, at every block side of the students' stages, with channels that fill no tile."""
    torch.manual_seed(0)
    layer = WINDOWS[name]
    if block % max(layer.stride):
        pytest.skip("the stride does not divide the block")
    images = torch.randn(2, 8, 3 * block, 2 * block, requires_grad=True)
    check_window(layer.float(), images, draw_cells(2, (3, 2), 0.4), "triton", rtol=1e-4, atol=1e-4)


@inside
@pytest.mark.parametrize(("channels", "columns"), [(64, 64), (72, 136), (256, 32)])
def test_tiles(channels, columns):
    """More than a tile of rows, channels and columns."""
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, columns, 3, padding=1, bias=False)
    images = torch.randn(3, channels, 12, 12, requires_grad=True)
    check_window(layer, images, draw_cells(3, (3, 3), 0.4), "triton", rtol=1e-3, atol=1e-3)


@inside
@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_masked(name):
    net = build(FAMILIES[name], dtype=torch.float32).eval()
    images, cells = torch.randn(1, 3, 64, 64), draw_cells(1, (2, 2), 0.4)
    results, expected = (run(net, images, cells, backend) for backend in ("triton", "masked"))
    for key, value in expected.items():
        if key.startswith("map"):
            assert (results[key] - value).abs().max() <= 1e-3 * value.abs().max(), key


@inside
def test_float16():
    """bfloat16, which the interpreter does not know, is left to `pytest -m gpu`."""
    from hgkd_hf.sparse import triton_kernels

    torch.manual_seed(0)
    dtype = torch.float16
    x, weight = torch.randn(40, 24, dtype=dtype), torch.randn(9, 24, 16, dtype=dtype)
    table = torch.randint(0, 41, (70, 9), dtype=torch.int32)
    padded = torch.cat([x, x.new_zeros(1, 24)]).float()
    expected = torch.einsum("mti,tio->mo", padded[table], weight.float())
    torch.testing.assert_close(triton_kernels.product(x, weight, table).float(), expected, rtol=0.02, atol=0.2)
    grad = torch.randn(70, 16, dtype=dtype)
    expected = torch.einsum("mti,mo->tio", padded[table], grad.float())
    torch.testing.assert_close(triton_kernels.weight_gradient(x, grad, table), expected, rtol=0.02, atol=0.2)


@needs_triton
def test_refused_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match='no kernels for cpu: use "cells"'):
        visible(VisibleCells(torch.zeros(1, 2, 2, dtype=torch.bool)), "triton")

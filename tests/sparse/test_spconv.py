"""Backend "spconv" computes what the reference computes, and refuses what it cannot."""

import copy
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from sparse_nets import assert_equal, build, draw_cells, run
from test_sparse_equality import RESNETS
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from hgkd_hf.sparse import SpconvBackend, checkpoint_contexts, sparsify, visible

needs_spconv = pytest.mark.skipif(
    importlib.util.find_spec("spconv") is None, reason='spconv is not installed: pip install "hgkd_hf[spconv]"'
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run_layers(layers, cells, backend="spconv", channels=5, block=8, dtype=torch.float64, autocast=None):
    """Forward and backward of a copy of `layers`: the output map, the gradients of the input and of the parameters."""
    net = sparsify(copy.deepcopy(layers)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    size = [side * block for side in cells.grid]
    images = torch.randn(cells.batch_size, channels, *size, generator=generator).to(dtype).requires_grad_()
    with visible(cells, backend) as sparse, torch.autocast("cpu", autocast, enabled=autocast is not None):
        y = sparse.leave(net(sparse.enter(images)))
    y.float().square().sum().backward()
    return [y.detach(), images.grad, *(p.grad for p in net.parameters())]


@needs_spconv
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.6, 0.75])
@pytest.mark.parametrize("name", ["narrow-18", "narrow-50"])
def test_equals_masked(name, ratio, train, bias):
    net = build(RESNETS[name], bias).train(train)
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    cells = draw_cells(2, (3, 4), ratio)
    assert_equal(run(net, images, cells, "spconv"), run(net, images, cells, "masked"), 1e-9)


@needs_spconv
@pytest.mark.parametrize("name", ["resnet-18", "resnet-50"])
def test_float32_outputs(name):
    net = build(RESNETS[name], dtype=torch.float32).train()
    images = torch.randn(2, 3, 96, 96)
    cells = draw_cells(2, (3, 3), 0.6)
    results, expected = (run(net, images, cells, backend) for backend in ("spconv", "masked"))
    for key in expected:
        if key.startswith("map") or key == "pooled":
            assert (results[key] - expected[key]).abs().max() <= 1e-3 * expected[key].abs().max(), key


@needs_spconv
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (7, 2, 3, 1), (3, 1, 2, 2), (2, 2, 0, 1), (1, 2, 0, 1), ((3, 1), (1, 2), (1, 0), 1)],
)
def test_convolution_before_inplace_relu(kernel, stride, padding, dilation):
    layers = nn.Sequential(nn.Conv2d(5, 6, kernel, stride, padding, dilation), nn.ReLU(inplace=True))
    cells = draw_cells(3, (3, 4), 0.5)
    for result, expected in zip(run_layers(layers, cells), run_layers(layers, cells, "masked")):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


@needs_spconv
def test_standardised_weight():
    layers = nn.Sequential(WeightStandardizedConv2d(5, 6, 3, padding=1), nn.ReLU())
    cells = draw_cells(3, (3, 4), 0.5)
    for result, expected in zip(run_layers(layers, cells), run_layers(layers, cells, "masked")):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


@needs_spconv
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_float16(autocast):
    layers = nn.Sequential(nn.Conv2d(5, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
    cells = draw_cells(3, (3, 4), 0.5)
    half = {"dtype": torch.float32, "autocast": torch.float16} if autocast else {"dtype": torch.float16}
    results = run_layers(layers, cells, **half)
    assert results[0].dtype == torch.float16
    for result, expected in zip(results, run_layers(layers, cells, "masked")):
        assert (result - expected).abs().max() <= 1e-2 * expected.abs().max()


@needs_spconv
def test_recomputed_forward():
    layers = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    class Recomputed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False, context_fn=checkpoint_contexts)

    cells = draw_cells(3, (3, 4), 0.5)
    for result, expected in zip(run_layers(Recomputed(*layers), cells), run_layers(layers, cells)):
        assert torch.equal(result, expected)


REPEAT = """
import sys
import torch
from test_spconv import draw_cells, nn, run_layers
print("imported before:", "spconv" in sys.modules)
torch.set_num_threads(4)
layers = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1))
cells = draw_cells(4, (4, 4), 0.5)
runs = [run_layers(layers, cells, channels=64, block=16, dtype=torch.float32) for _ in range(51)]
print(sum(all(map(torch.equal, run, runs[0])) for run in runs[1:]), "of 50 equal,", torch.get_num_threads(), "threads")
"""


@needs_spconv
@pytest.mark.parametrize(("first", "before"), [("", False), ("import spconv.utils", True)], ids=["torch", "spconv"])
def test_threads_do_not_race(first, before, request):
    """Whether torch or spconv is imported first, which decides on whose OpenMP spconv runs."""
    command = [sys.executable, "-c", first + REPEAT]
    result = subprocess.run(command, cwd=request.path.parent, capture_output=True, text=True, check=False)
    assert result.stdout == f"imported before: {before}\n50 of 50 equal, 4 threads\n", result.stderr


@needs_spconv
@pytest.mark.parametrize(
    ("layer", "dtype", "autocast", "match"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), torch.bfloat16, None, "Conv2d.*no torch.bfloat16, use float16, float32 or"),
        (nn.Conv2d(4, 4, 3, padding=1), torch.float32, torch.bfloat16, "Conv2d.*no torch.bfloat16, use float16"),
    ],
)
def test_refused_layer_is_named(layer, dtype, autocast, match):
    with pytest.raises(ValueError, match=match):
        run_layers(nn.Sequential(layer), draw_cells(1, (2, 2), 0.5), channels=4, dtype=dtype, autocast=autocast)


@needs_spconv
def test_tensor_beyond_its_offsets_is_refused():
    layer = sparsify(nn.Conv2d(1, 1, 3, padding=1))
    cells = draw_cells(1, (2, 2), 0.0)
    x = torch.zeros(()).expand(4, 1, 2**15, 2**14)  # takes no memory
    with visible(cells, "spconv"), pytest.raises(ValueError, match=r"counts to 2\*\*31 values"):
        layer(x)


@needs_spconv
def test_device_without_kernels_is_refused():
    with pytest.raises(RuntimeError, match='no kernels for mps: use sparse backend "cells"'):
        SpconvBackend(SimpleNamespace(device=torch.device("mps")))


@needs_spconv
def test_cpu_wheel_is_refused_on_gpu(monkeypatch):
    monkeypatch.setattr("spconv.pytorch.ops.CPU_ONLY_BUILD", True)
    with pytest.raises(RuntimeError, match=r"no kernels for cuda.*pip install spconv-cu118"):
        SpconvBackend(SimpleNamespace(device=torch.device("cuda")))


def test_missing_package_is_named(monkeypatch):
    for name in ("spconv", "spconv.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "hgkd_hf\[spconv\]" .* spconv-cu118, .* spconv-cu126'):
        visible(draw_cells(1, (2, 2), 0.5), "spconv")

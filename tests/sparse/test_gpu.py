"""On a CUDA device: every backend equals the reference, forwards and backwards, and no step waits for the device."""

import contextlib
from importlib.util import find_spec

import pytest
import torch
from sparse_nets import assert_equal, build, draw_cells, run
from test_sparse_families import FAMILIES

from hgkd_hf.sparse import sparsify, visible
from hgkd_hf.sparse.masking import VisibleCells

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def spconv_runs() -> bool:
    if not (find_spec("spconv") and torch.cuda.is_available()):
        return False
    from spconv.pytorch import ops

    return not ops.CPU_ONLY_BUILD


BACKENDS = ["cells", *(["triton"] if find_spec("triton") else []), *(["spconv"] if spconv_runs() else [])]


@pytest.fixture(autouse=True)
def exact_products():
    """float32 means float32, not TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_gpu(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor, VisibleCells]:
    images, mask = torch.randn(2, 3, 96, 96, dtype=dtype), draw_cells(2, (3, 3), 0.4).bool_masked_pos
    cells = VisibleCells(mask.cuda(), visible_per_image=5)
    return build(FAMILIES[name], dtype=dtype).train().cuda(), images.cuda(), cells


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_reference(name, backend):
    """Outputs, gradients and running statistics."""
    net, images, cells = on_gpu(name, torch.float64)
    assert_equal(run(net, images, cells, backend), run(net, images, cells, "masked"), 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_in_lower_precision(name, dtype, tolerance, backend):
    if backend == "spconv" and dtype == torch.bfloat16:
        pytest.skip("spconv has no bfloat16")
    net, images, cells = on_gpu(name, torch.float32)
    expected = run(net.eval(), images, cells, "masked")
    with torch.autocast("cuda", dtype) if dtype == torch.bfloat16 else contextlib.nullcontext():
        results = run(net, images, cells, backend)
    for key, value in expected.items():
        if key.startswith("map"):
            assert (results[key].float() - value).norm() <= tolerance * value.norm(), key


@pytest.mark.parametrize("name", ["resnet", "convnextv2"])
def test_repeats_bit_for_bit(name):
    net, images, cells = on_gpu(name, torch.float32)
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        first, second = (run(net, images, cells, "cells") for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_waits_for_the_device(name):
    net, images, cells = on_gpu(name, torch.float32)
    net, mask = sparsify(net), cells.bool_masked_pos

    def step():
        with visible(VisibleCells(mask, visible_per_image=5)) as sparse:
            state = sparse.leave(net(sparse.enter(images)).last_hidden_state)
        state.square().mean().backward()

    step()  # what does not depend on the mask is copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""What accelerators need of the backend "cells": nothing waits for a value, few kernels, the same results."""

from collections import Counter
from functools import partial

import pytest
import torch
from sparse_nets import assert_equal, build, draw_cells, run
from test_sparse_equality import RESNETS
from test_sparse_families import FAMILIES
from test_sparse_layers import WINDOWS, check_window
from torch.utils._python_dispatch import TorchDispatchMode

from hgkd_hf import HGKDConfig, HGKDForPreTraining
from hgkd_hf.objectives.whitening import CALIBRATION_BATCHES
from hgkd_hf.sparse import BACKENDS, CellsBackend, sparsify, visible
from hgkd_hf.sparse.masking import VisibleCells, random_cell_mask

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def static(monkeypatch):
    """The CPU computes as an accelerator would: with shapes that follow from the number of visible cells."""
    monkeypatch.setitem(BACKENDS, "cells", partial(CellsBackend, static=True))


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for its device: values that are looked at, shapes that depend on them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = (aten.nonzero, aten._local_scalar_dense, aten.masked_select, aten.bincount, aten.equal)
        if function.overloadpacket in waits:
            raise AssertionError(f"{function} waits for the device")
        if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), (
                f"{function} by bools"
            )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75])
@pytest.mark.parametrize("name", ["narrow-18", "narrow-50"])
def test_resnets_equal_masked(name, ratio, train):
    net = build(RESNETS[name], bias=True).train(train)
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    cells = draw_cells(2, (3, 4), ratio)
    assert_equal(run(net, images, cells, "cells"), run(net, images, cells, "masked"), 1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_masked(name):
    net = build(FAMILIES[name]).train()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    cells = draw_cells(2, (3, 3), 0.4)
    assert_equal(run(net, images, cells, "cells"), run(net, images, cells, "masked"), 1e-9)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name):
    torch.manual_seed(0)
    for block in (4, 16):
        images = torch.randn(2, 8, 3 * block, 2 * block, dtype=torch.float64, requires_grad=True)
        cells = draw_cells(2, (3, 2), 0.4, seed=block)
        check_window(WINDOWS[name].double(), images, cells, "cells", rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet", "regnet-y", "convnext", "convnextv2", "mobilenet_v2", "efficientnet"])
def test_no_step_waits_for_the_device(name):
    """Forward and backward, and the tables of a new mask."""
    net = sparsify(build(FAMILIES[name], dtype=torch.float32)).train()
    images, mask = torch.randn(2, 3, 96, 96), draw_cells(2, (3, 3), 0.4).bool_masked_pos
    with NoWaiting():
        with visible(VisibleCells(mask, visible_per_image=5)) as sparse:
            state = sparse.leave(net(sparse.enter(images)).last_hidden_state)
        state.square().mean().backward()


@pytest.mark.parametrize("terms", [{}, {"decoder": "full", "pixel_weight": 1.0}, {"positions": "masked"}])
def test_no_distillation_step_waits_for_the_device(terms, teacher, student_config):
    config = HGKDConfig.for_teacher(teacher, student_config, image_size=64, mask_ratio=0.6, **terms)
    model = HGKDForPreTraining(config).attach_teacher(teacher).train()
    mask = torch.stack([random_cell_mask(config.cell_grid, 0.6) for _ in range(2)])
    images = torch.randn(2, 3, 64, 64)
    for norm in model.target_norms:  # whose calibration, in the first batches of a training, reads its own count
        norm.statistics.num_batches.fill_(CALIBRATION_BATCHES)
    model(images, mask)
    with NoWaiting():
        model(images, mask).loss.backward()


def test_the_watch_sees_what_waits():
    x = torch.randn(4)
    for waits in (
        x.nonzero,
        x[0].item,
        lambda: x[x > 0],
        lambda: bool((x > 0).all()),
        lambda: x.masked_fill_(x > 9, 0)[x > 9],
    ):
        with NoWaiting(), pytest.raises(AssertionError):
            waits()


class Kernels(TorchDispatchMode):
    """Counts operations that would each be a kernel or more: neither views nor allocations."""

    FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view")

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count[name] += not function.is_view and name not in self.FREE
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "dense", "most"), [(torch.float32, 406, 700), (torch.bfloat16, 515, 880)])
def test_kernels_of_a_resnet50_step(dtype, dense, most):
    """Before tables were shared and gathered from: 1,907 and 2,163 (the stock dense network: 406 and 515)."""
    net = sparsify(build(RESNETS["resnet-50"], dtype=torch.float32)).train().to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, 224, 224)

    def step(mask: torch.Tensor | None) -> int:
        net.zero_grad()
        with Kernels() as kernels, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            if mask is None:
                state = net(images).last_hidden_state
            else:
                with visible(VisibleCells(mask, visible_per_image=20)) as sparse:
                    state = net(sparse.enter(images)).last_hidden_state
            state.float().square().mean().backward()
        return kernels.count.total()

    masks = draw_cells(1, (7, 7), 0.6).bool_masked_pos, draw_cells(1, (7, 7), 0.6, seed=1).bool_masked_pos
    step(masks[0])  # what does not depend on the mask is made once
    assert step(None) <= dense
    assert step(masks[1]) <= most


def test_equal_counts_give_the_same_rows():
    mask = draw_cells(3, (3, 4), 0.5).bool_masked_pos
    known, counted = VisibleCells(mask, visible_per_image=6), VisibleCells(mask)
    assert torch.equal(known.image_index, counted.image_index)
    assert torch.equal(known.cell_index, counted.cell_index)
    assert known.cells_per_image.tolist() == [6, 6, 6]


def test_wrong_counts_are_refused():
    mask = draw_cells(3, (3, 4), 0.5).bool_masked_pos
    with pytest.raises(ValueError, match="does not leave visible_per_image=5 cells of every image"):
        VisibleCells(mask, visible_per_image=5)

"""The dense parts of a step compile as one graph each; the sparse encoder, whose tables a mask decides, stays out."""

import pytest
import torch

from hgkd_hf.sparse.masking import VisibleCells, random_cell_mask


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_decoder_is_one_graph_for_all_masks(hgkd):
    torch.manual_seed(0)
    decoder, grid = hgkd.student.decoder.eval(), hgkd.config.cell_grid
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    forward = torch.compile(decoder.forward, fullgraph=True, backend=counting)
    maps = {scale.stride: torch.randn(2, scale.channels, *(64 // scale.stride,) * 2) for scale in decoder.scales}
    for _ in range(3):
        cells = VisibleCells(torch.stack([random_cell_mask(grid, 0.6) for _ in range(2)]))
        torch.testing.assert_close(forward(maps, cells), decoder(maps, cells))
    assert len(graphs) == 1


def test_teacher_is_one_graph_with_fused_attention(teacher):
    assert teacher.model.config._attn_implementation == "sdpa"
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = teacher.model(pixels).last_hidden_state
        forward = torch.compile(teacher.model.forward, fullgraph=True, backend="eager")
        torch.testing.assert_close(forward(pixels).last_hidden_state, expected)

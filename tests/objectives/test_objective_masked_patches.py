import math

import pytest
import torch

from hgkd_hf.objectives.masked_patches import block_mask, draw_mask_ratio, masked_patch_loss


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_loss_by_hand():
    """Three images with 2, 0 and 1 masked patches: each image weighs the same, the empty one counts as 0."""
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    scores, targets = random(3, 4), random(3, 4, seed=1).softmax(1)
    entropies = []
    for row in range(3):
        exps = [math.exp(z / 0.1) for z in scores[row].tolist()]
        entropies.append(-sum(q * math.log(e / sum(exps)) for q, e in zip(targets[row].tolist(), exps)))
    expected = ((entropies[0] + entropies[1]) / 2 + 0 + entropies[2]) / 3
    assert masked_patch_loss(scores, targets, mask).item() == pytest.approx(expected)


def test_an_empty_mask_is_zero_with_a_zero_gradient():
    weight = random(5, 4).requires_grad_()
    loss = masked_patch_loss(random(0, 5) @ weight, random(0, 4), torch.zeros(2, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (weight.grad == 0).all()


def test_two_views_stacked_are_the_mean_of_their_terms():
    masks = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    count = int(masks[:2].sum())
    scores, targets = random(int(masks.sum()), 4), random(int(masks.sum()), 4, seed=1).softmax(1)
    first = masked_patch_loss(scores[:count], targets[:count], masks[:2])
    second = masked_patch_loss(scores[count:], targets[count:], masks[2:])
    torch.testing.assert_close(masked_patch_loss(scores, targets, masks), (first + second) / 2)


def test_refuses_rows_that_are_not_the_masked_ones():
    with pytest.raises(ValueError, match=r"\(3, 4\).*M = 2"):
        masked_patch_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([[True, True, False]]))
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 5\)"):
        masked_patch_loss(torch.zeros(2, 4), torch.zeros(2, 5), torch.tensor([[True, True, False]]))


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (6, 10), (1, 5)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37, 0.5, 1.0])
def test_block_masks_hide_exactly_their_share(grid, ratio):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        mask = block_mask(grid, ratio, generator)
        assert mask.shape == grid
        assert mask.sum() == round(ratio * grid[0] * grid[1])


def test_block_masks_are_a_function_of_the_generator():
    draws = [block_mask((14, 14), 0.3, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_blocks_are_as_often_wide_as_tall_and_within_the_aspect_range():
    """100 hidden cells are one block's smallest area on this grid, so most masks are a single block."""
    generator = torch.Generator().manual_seed(0)
    aspects = []
    for _ in range(300):
        mask = block_mask((30, 30), 100 / 900, generator)
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = (int(lines.max() - lines.min()) + 1 for lines in (rows, columns))
        if height * width - 100 < width:  # one block, of which only the last row may be cut short
            aspects.append(math.log(height / width))
    assert len(aspects) > 100
    assert -1.45 < min(aspects) < -0.9  # log 0.3 = -1.2, give or take the rounding to cells
    assert 0.9 < max(aspects) < 1.45
    assert abs(sum(aspects) / len(aspects)) < 0.15


def test_blocks_keep_neighbours_together():
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([block_mask((14, 14), 0.3, generator) for _ in range(100)])
    # Of hidden cells' right neighbours 0.3 would be hidden if cells were drawn one by one.
    together = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    assert together > 0.6
    # No part of the image is preferred beyond what blocks must do to the border.
    frequency = masks.float().mean(0)
    assert (frequency.mean(0) > 0.1).all()
    assert (frequency.mean(1) > 0.1).all()
    assert abs(frequency[:7].mean() - frequency[7:].mean()) < 0.08
    assert abs(frequency[:, :7].mean() - frequency[:, 7:].mean()) < 0.08


def test_mask_ratios():
    generator = torch.Generator().manual_seed(0)
    ratios = torch.tensor([draw_mask_ratio(generator) for _ in range(4000)])
    drawn = ratios[ratios > 0]
    assert len(drawn) / len(ratios) == pytest.approx(0.5, abs=0.03)
    assert drawn.min() == pytest.approx(0.1, abs=0.002)
    assert drawn.max() == pytest.approx(0.5, abs=0.002)
    assert drawn.mean() == pytest.approx(0.3, abs=0.01)


def test_refuses_a_ratio_out_of_range():
    with pytest.raises(ValueError, match=r"1\.2"):
        block_mask((4, 4), 1.2, torch.Generator())

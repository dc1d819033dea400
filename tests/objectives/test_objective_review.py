import pytest
import torch
from torch.nn import functional as F

from hgkd_hf.objectives.review import AttentionFusion, Review, hierarchical_context_loss


def test_hierarchical_context_by_hand():
    """Of a 2x2 map there is the map itself, weight 1, and its mean, weight 1/2."""
    student, teacher = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), torch.zeros(1, 1, 2, 2)
    full, mean = (1 + 4 + 9 + 36) / 4, 3.0**2
    assert hierarchical_context_loss(student, teacher).item() == pytest.approx((full + mean / 2) / 1.5)
    assert hierarchical_context_loss(student[..., :1, :1], teacher[..., :1, :1]).item() == 1  # a vector: no pool


def test_hierarchical_context_of_a_large_map():
    student, teacher = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    difference = student - teacher
    pools = [difference, *(F.avg_pool2d(difference, kernel) for kernel in (2, 4, 8))]
    expected = sum(weight * pool.square().mean() for weight, pool in zip((8, 4, 2, 1), pools)) / 15
    torch.testing.assert_close(hierarchical_context_loss(student, teacher), expected)


def test_an_error_everywhere_costs_more_than_one_that_averages_out():
    teacher = torch.zeros(1, 1, 8, 8)
    chequered = torch.ones(8, 8)
    chequered[::2, ::2] = chequered[1::2, 1::2] = -1
    even, uneven = (hierarchical_context_loss(e.expand(1, 1, 8, 8), teacher) for e in (torch.ones(8, 8), chequered))
    assert even.item() == pytest.approx(1)
    assert uneven.item() == pytest.approx(8 / 15)


@pytest.mark.parametrize("shapes", [((1, 2, 4, 4), (1, 3, 4, 4)), ((1, 2, 4, 4), (1, 2, 2, 2)), ((2, 4), (2, 4))])
def test_refuses_shapes_that_do_not_match(shapes):
    with pytest.raises(ValueError, match=r"student map \(.*teacher map \(.*must both be"):
        hierarchical_context_loss(*map(torch.zeros, shapes))


def test_fusion_by_hand():
    """With biases b, c alone as attention: sigmoid(b) * own map + sigmoid(c) * the deeper one, enlarged."""
    fusion = AttentionFusion(channels=2, width=2, teacher_channels=1, deepest=False).eval()
    fusion.reduce[0].weight.data = torch.eye(2)[..., None, None]
    fusion.attention.weight.data.zero_()
    fusion.attention.bias.data = torch.tensor([1.0, -2.0])
    generator = torch.Generator().manual_seed(0)
    own, deeper = torch.randn(1, 2, 4, 4, generator=generator), torch.randn(1, 2, 2, 2, generator=generator)
    out, review = fusion(own, deeper, (8, 8))
    larger = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = torch.tensor(1.0).sigmoid() * own + torch.tensor(-2.0).sigmoid() * larger
    expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(review, expected, rtol=1e-4, atol=1e-4)  # BatchNorm's epsilon
    torch.testing.assert_close(out, fusion.expand(review))
    assert out.shape == (1, 1, 8, 8)


def test_every_level_reviews_the_deeper_ones_and_none_of_the_finer():
    review = Review([4, 6, 8], [5, 7, 9]).eval()
    students = [torch.randn(2, c, s, s + 2, requires_grad=True) for c, s in ((4, 8), (6, 4), (8, 2))]
    teachers = [torch.randn(2, c, s, s) for c, s in ((5, 8), (7, 6), (9, 2))]
    pairs = review(students, teachers)
    assert [ours.shape for ours, _ in pairs] == [theirs.shape for _, theirs in pairs]
    assert [tuple(ours.shape) for ours, _ in pairs] == [(2, 5, 8, 8), (2, 7, 6, 6), (2, 9, 2, 2), (2, 9, 1, 1)]
    for level, (ours, _) in enumerate(pairs):
        gradients = torch.autograd.grad(ours.square().sum(), students, retain_graph=True, allow_unused=True)
        assert [g is not None and bool(g.any()) for g in gradients] == [i >= min(level, 2) for i in range(3)]

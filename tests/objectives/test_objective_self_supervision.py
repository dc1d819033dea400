import math

import pytest
import torch

from hgkd_hf.objectives.self_supervision import rotations, similarity_loss, view_similarities


def test_rotations_by_hand():
    views = rotations(torch.tensor([[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]))
    assert views[:, 0].tolist() == [
        *([[1, 2], [3, 4]], [[5, 6], [7, 8]]),
        *([[2, 4], [1, 3]], [[6, 8], [5, 7]]),
        *([[4, 3], [2, 1]], [[8, 7], [6, 5]]),
        *([[3, 1], [4, 2]], [[7, 5], [8, 6]]),
    ]
    with pytest.raises(ValueError, match="must be square, but they are 2x3"):
        rotations(torch.zeros(1, 3, 2, 3))


def test_similarities_by_hand():
    upright = [[3.0, 4.0], [0.0, 2.0]]
    turned = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [3.0, 4.0], [0.0, -1.0], [4.0, 3.0]]
    expected = [[0.6, 0.0], [0.8, 1.0], [-0.6, 0.0], [1.0, 0.8], [-0.8, -1.0], [0.96, 0.6]]
    torch.testing.assert_close(view_similarities(torch.tensor(upright + turned)), torch.tensor(expected))


def test_loss_by_hand():
    """One view is understood, and of the five others the best three (0.75 * 5, rounded down) are kept."""
    images = 2
    right = [[1.0, 0.0]]  # view 0, of image 0
    wrong = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]  # of images 1, 0, 1, 0, 1: all rank 1
    teacher = torch.tensor(right + wrong)
    student = torch.zeros(3 * images, images)
    high = math.exp(2) / (math.exp(2) + 1)  # temperature 0.5
    divergence = high * math.log(2 * high) + (1 - high) * math.log(2 * (1 - high))
    assert similarity_loss(student, teacher).item() == pytest.approx(0.25 * divergence, rel=1e-4)
    # The student is made right about the view that is dropped, and then about one that is kept.
    for view, factor in ((5, 1), (3, 0.75)):
        student[view] = teacher[view]
        assert similarity_loss(student, teacher).item() == pytest.approx(0.25 * divergence * factor, rel=1e-4)


def test_views_that_rank_their_own_image_better_are_kept_first():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 12, 4, generator=generator).unbind()
    rank = [sum(row[j] > row[i % 4] for j in range(4)).item() for i, row in enumerate(teacher)]
    right = rank.count(0)
    kept = sorted(range(12), key=lambda view: rank[view])[: right + (12 - right) // 2]
    per_view = [(p.exp() * (p - q)).sum() for p, q in zip(teacher.log_softmax(1), student.log_softmax(1))]
    expected = sum(per_view[view] for view in kept) / len(kept)
    torch.testing.assert_close(similarity_loss(student, teacher, temperature=1.0, wrong_share=0.5), expected)


def test_the_same_similarities_cost_nothing_and_no_view_kept_is_no_error():
    similarities = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert similarity_loss(similarities, similarities).item() == pytest.approx(0, abs=1e-6)
    student = torch.zeros(3, 1, requires_grad=True)
    similarity_loss(student, torch.zeros(3, 1)).backward()  # of one image, all views are understood
    wrong = torch.tensor([[0.0, 1.0], [1.0, 0.0]] * 3)
    student = torch.zeros(6, 2, requires_grad=True)
    loss = similarity_loss(student, wrong, wrong_share=0.0)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()
    with pytest.raises(ValueError, match="must both be"):
        similarity_loss(torch.zeros(4, 2), torch.zeros(4, 2))

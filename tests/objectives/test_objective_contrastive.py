import math

import pytest
import torch
from torch.nn import functional as F

from hgkd_hf.objectives.contrastive import ContrastiveLoss


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    contrast = ContrastiveLoss(5, 7, projection_dim=3).double()
    student, teacher = random(4, 5), random(4, 7, seed=1)
    s = F.normalize(student @ contrast.student_projection.weight.T + contrast.student_projection.bias).tolist()
    t = F.normalize(teacher @ contrast.teacher_projection.weight.T + contrast.teacher_projection.bias).tolist()

    def half(anchors, candidates):
        total = 0
        for i, anchor in enumerate(anchors):
            exps = [math.exp(sum(x * y for x, y in zip(anchor, c)) / 0.07) for c in candidates]
            total -= math.log(exps[i] / sum(exps))
        return total / len(anchors)

    terms = contrast(student, teacher)
    assert terms["student_to_teacher"].item() == pytest.approx(half(s, t))
    assert terms["teacher_to_student"].item() == pytest.approx(half(t, s))
    assert terms["loss"].item() == pytest.approx(half(s, t) + half(t, s))


def test_defaults_and_the_entropy_floor():
    contrast = ContrastiveLoss(5, 7).double()
    assert contrast.student_projection.out_features == contrast.teacher_projection.out_features == 128
    terms = contrast(random(1, 5).expand(6, 5), random(1, 7).expand(6, 7))
    assert terms["student_to_teacher"].item() == pytest.approx(math.log(6))
    assert terms["teacher_to_student"].item() == pytest.approx(math.log(6))


def test_the_order_of_images_does_not_matter():
    contrast = ContrastiveLoss(5, 7).double()
    student, teacher, order = random(4, 5), random(4, 7, seed=1), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(contrast(student, teacher)["loss"], contrast(student[order], teacher[order])["loss"])
    assert not torch.isclose(contrast(student, teacher)["loss"], contrast(student[order], teacher)["loss"])


def test_both_projections_learn_and_the_teachers_features_do_not():
    contrast = ContrastiveLoss(5, 7).double()
    student, teacher = random(4, 5).requires_grad_(), random(4, 7, seed=1).requires_grad_()
    contrast(student, teacher)["loss"].backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in contrast.parameters())


def test_training_finds_the_pairs():
    """Teacher features are another linear view of the student's: the loss falls far below its start at log B."""
    torch.manual_seed(0)
    contrast = ContrastiveLoss(8, 6).double()
    student, mixing = random(32, 8), random(8, 6, seed=1)
    optimizer = torch.optim.Adam(contrast.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = contrast(student, student @ mixing)["loss"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * 2 * math.log(32)


def test_refuses_other_shapes():
    contrast = ContrastiveLoss(5, 7)
    for student, teacher in [((4, 5), (3, 7)), ((4, 7), (4, 7)), ((4, 5), (4, 5)), ((4, 5, 1), (4, 7))]:
        with pytest.raises(ValueError, match=r"student features \(4.*teacher features"):
            contrast(torch.zeros(student), torch.zeros(teacher))

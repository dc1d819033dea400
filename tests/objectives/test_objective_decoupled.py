import math

import pytest
import torch

from hgkd_hf.objectives.decoupled import decoupled_distillation_loss
from hgkd_hf.objectives.logit_distillation import soft_distillation_loss

LABELS = torch.tensor([2, 0, 4, 2])


def logits(seed):
    return 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row, temperature):
    exps = [math.exp(z / temperature) for z in row]
    return [e / sum(exps) for e in exps]


def kl(q, p):
    return sum(b * math.log(b / a) for a, b in zip(p, q))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_by_hand(temperature):
    student, teacher = logits(0), logits(1)
    target, others = 0, 0
    for s, t, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist()):
        p, q = softmax(s, temperature), softmax(t, temperature)
        target += kl([q[label], 1 - q[label]], [p[label], 1 - p[label]]) / 4
        rest = [k for k in range(5) if k != label]
        others += kl([q[k] / (1 - q[label]) for k in rest], [p[k] / (1 - p[label]) for k in rest]) / 4
    terms = decoupled_distillation_loss(student, teacher, LABELS, alpha=1.0, beta=8.0, temperature=temperature)
    assert terms["target_class"].item() == pytest.approx(temperature**2 * target)
    assert terms["other_classes"].item() == pytest.approx(temperature**2 * others)
    assert terms["loss"].item() == pytest.approx(temperature**2 * (target + 8 * others))


def test_defaults():
    student, teacher = logits(0), logits(1)
    expected = decoupled_distillation_loss(student, teacher, LABELS, alpha=1.0, beta=8.0, temperature=4.0)
    assert decoupled_distillation_loss(student, teacher, LABELS)["loss"] == expected["loss"]


def test_hintons_loss_is_its_special_case():
    """TCKD + (1 - teacher's probability of the label) NCKD, image by image."""
    student, teacher = logits(0), logits(1)
    for row in range(4):
        s, t, label = student[row : row + 1], teacher[row : row + 1], LABELS[row : row + 1]
        beta = 1 - (t / 4).softmax(1)[0, label].item()
        terms = decoupled_distillation_loss(s, t, label, beta=beta, temperature=4.0)
        torch.testing.assert_close(terms["loss"], soft_distillation_loss(s, t, 4.0))


def test_stays_finite_where_the_teacher_is_certain():
    teacher = 1000 * torch.nn.functional.one_hot(LABELS, 5).float()
    student = logits(0).float().requires_grad_()
    loss = decoupled_distillation_loss(student, teacher, LABELS)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_equal_logits_are_the_minimum_and_only_the_student_learns():
    student, teacher = logits(0).requires_grad_(), logits(0).requires_grad_()
    loss = decoupled_distillation_loss(student, teacher, LABELS)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)
    assert teacher.grad is None


def test_refusals():
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 4\)"):
        decoupled_distillation_loss(logits(0), logits(1)[:, :4], LABELS)
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(3,\)"):
        decoupled_distillation_loss(logits(0), logits(1), LABELS[:3])
    with pytest.raises(ValueError, match=r"\(4, 1\)"):
        decoupled_distillation_loss(logits(0)[:, :1], logits(1)[:, :1], LABELS * 0)

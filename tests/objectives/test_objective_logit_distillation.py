import math

import pytest
import torch

from hgkd_hf.objectives.logit_distillation import hard_distillation_loss, soft_distillation_loss


def logits(seed):
    return 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row, temperature):
    exps = [math.exp(z / temperature) for z in row]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_by_hand(temperature):
    student, teacher = logits(0), logits(1)
    total = 0
    for s, t in zip(student.tolist(), teacher.tolist()):
        total += sum(q * math.log(q / p) for p, q in zip(softmax(s, temperature), softmax(t, temperature)))
    assert soft_distillation_loss(student, teacher, temperature).item() == pytest.approx(temperature**2 * total / 4)


def test_hard_by_hand():
    student, teacher = logits(0), logits(1)
    total = 0
    for s, t in zip(student.tolist(), teacher.tolist()):
        total -= math.log(softmax(s, 1)[t.index(max(t))])
    assert hard_distillation_loss(student, teacher).item() == pytest.approx(total / 4)


def test_equal_logits_are_the_minimum():
    student = logits(0).requires_grad_()
    loss = soft_distillation_loss(student, student + 7, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


def test_only_the_student_learns():
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    (soft_distillation_loss(student, teacher) + hard_distillation_loss(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("loss", [soft_distillation_loss, hard_distillation_loss])
def test_refuses_other_shapes(loss):
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 1\)"):
        loss(logits(0), logits(1)[:, :1])

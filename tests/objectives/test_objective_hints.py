import pytest
import torch

from hgkd_hf.objectives.hints import HintLoss


def test_by_hand():
    hint = HintLoss(2, 3).double()
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 2, 2, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64)
    weight, bias = hint.regressor.weight.flatten(1).tolist(), hint.regressor.bias.tolist()
    errors = []
    for b, c, y, x in torch.cartesian_prod(*map(torch.arange, (2, 3, 2, 3))).tolist():
        regressed = sum(weight[c][d] * student[b, d, y, x].item() for d in range(2)) + bias[c]
        errors.append((regressed - teacher[b, c, y, x].item()) ** 2)
    assert hint(student, teacher).item() == pytest.approx(sum(errors) / len(errors))


def test_student_and_regressor_learn_and_the_teacher_does_not():
    hint = HintLoss(2, 3)
    student, teacher = torch.ones(1, 2, 2, 2, requires_grad=True), torch.ones(1, 3, 2, 2, requires_grad=True)
    hint(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0
    assert hint.regressor.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((1, 2, 4, 4), (1, 3, 2, 2)), ((1, 3, 4, 4), (1, 3, 4, 4)), ((1, 2, 4, 4), (1, 2, 4, 4)), ((1, 2, 4), (1, 3, 4))],
)
def test_refuses_shapes_that_do_not_match(student, teacher):
    with pytest.raises(ValueError, match=r"student map \(1.*teacher map \(1"):
        HintLoss(2, 3)(torch.zeros(student), torch.zeros(teacher))

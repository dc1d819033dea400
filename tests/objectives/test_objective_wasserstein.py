import math

import pytest
import torch
from torch.nn import functional as F

from hgkd_hf.objectives.wasserstein import BilinearCritic, dual_loss, sinkhorn_plan, transport_cost


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_dual_by_hand():
    critic = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 12.0]])
    assert dual_loss(critic).item() == pytest.approx(-(1 + 5 + 12) / 3 + (2 + 3 + 4 + 6 + 7 + 8) / 6)


@pytest.mark.parametrize("shape", [(3, 2), (1, 1), (4,)])
def test_dual_needs_pairs(shape):
    with pytest.raises(ValueError, match="must be .* of at least two images"):
        dual_loss(torch.zeros(shape))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_critic_is_1_lipschitz_whatever_its_weights(scale):
    critic = BilinearCritic(5, 7, dim=6)
    for parameter in critic.parameters():
        parameter.data.mul_(scale)
    student, teacher = F.normalize(noise(40, 5), dim=1), F.normalize(noise(40, 7, seed=1), dim=1)
    values = critic(student, teacher).diagonal()
    moved = (torch.cdist(student, student) ** 2 + torch.cdist(teacher, teacher) ** 2).sqrt()
    assert ((values[:, None] - values).abs() <= moved + 1e-5).all()
    assert values.abs().max() <= 1 / math.sqrt(2)


def test_critic_by_hand():
    critic = BilinearCritic(2, 2, dim=2)
    critic.student_projection.weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # spectral norm 2
    critic.teacher_projection.weight.data = torch.tensor([[3.0, 0.0], [0.0, 3.0]])  # 3
    value = critic(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0]]))
    assert value.item() == pytest.approx((0.6 * 0 + 0.5 * 0.8 * 1) / math.sqrt(2))


def test_plan_by_hand():
    """Equal rows and columns are balanced at once: exp(-cost / epsilon), of rows that sum to 1/2."""
    plan = sinkhorn_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.5, iterations=1)
    own = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(plan, torch.tensor([[own, 1 - own], [1 - own, own]]) / 2)


def test_plan_has_equal_masses():
    plan = sinkhorn_plan(noise(6, 6).abs(), epsilon=0.2, iterations=200)
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6))
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6), rtol=1e-3, atol=1e-4)


def test_features_in_another_order_or_scale_cost_nothing():
    teacher = noise(6, 32)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert transport_cost(3 * teacher[order], teacher, epsilon=0.01).item() == pytest.approx(0, abs=1e-5)
    assert transport_cost(-teacher[order], teacher, epsilon=0.01).item() > 0.5


def test_transport_moves_the_student_alone():
    student, teacher = noise(4, 8).requires_grad_(), noise(4, 8, seed=1).requires_grad_()
    before = transport_cost(student, teacher)
    before.backward()
    assert teacher.grad is None
    assert transport_cost(student.detach() - 0.1 * student.grad, teacher) < before
    with pytest.raises(ValueError, match="must both be"):
        transport_cost(student, teacher[:3])

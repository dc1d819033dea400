import pytest
import torch

from hgkd_hf.objectives.reconstruction_consistency import reconstruction_consistency_loss


def test_by_hand():
    """Two cells of one image, 2x2 values of one channel each; the right one is hidden: (1 + 4 + 0 + 9) / 4."""
    student = torch.tensor([[[[7.0, 7.0, 1.0, 2.0], [7.0, 7.0, 3.0, 4.0]]]])
    average = torch.tensor([[[[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 3.0, 1.0]]]])
    assert reconstruction_consistency_loss(student, average, torch.tensor([[[False, True]]])) == 3.5


def test_what_is_visible_counts_nowhere_and_hidden_cells_count_alike():
    generator = torch.Generator().manual_seed(0)
    student, average = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
    mask = torch.tensor([[[True, False], [False, False]], [[True, True], [False, True]]])
    hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    loss = reconstruction_consistency_loss(student, average, mask)
    changed = torch.where(hidden, student, torch.randn_like(student))
    assert torch.equal(reconstruction_consistency_loss(changed, average, mask), loss)
    torch.testing.assert_close(loss, (student - average)[hidden.expand_as(student)].square().mean())


def test_the_average_is_constant():
    student, average = (torch.ones(1, 3, 4, 4, requires_grad=True) for _ in range(2))
    loss = reconstruction_consistency_loss(2 * student, average, torch.ones(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert average.grad is None
    assert student.grad.abs().min() > 0


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"prediction \(1, 3, 4, 4\) and average_prediction \(1, 3, 2, 2\) differ"):
        reconstruction_consistency_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2).bool())
    with pytest.raises(ValueError, match="no cell is hidden"):
        reconstruction_consistency_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2).bool())

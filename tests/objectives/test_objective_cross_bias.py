import math

import pytest
import torch

from hgkd_hf.objectives.cross_bias import answer, token_distillation_losses


def logits(seed):
    return 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    """One image, two classes: KL((1/4, 3/4) || (1/2, 1/2)) and KL((1/2, 1/2) || (1/4, 3/4))."""
    even, uneven = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    found = token_distillation_losses([even, uneven], [uneven, even])
    wanted = [math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_answer_is_the_mean_of_all_tokens():
    class_logits, tokens = torch.tensor([[3.0, 0.0]]), [torch.tensor([[0.0, 6.0]]), torch.tensor([[0.0, 3.0]])]
    assert answer(class_logits, tokens).tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_token_follows_its_own_teacher_alone(temperature):
    """Its loss and gradient are those of its own pair, and a teacher that agrees with its token costs nothing."""
    tokens, teachers = [logits(seed).requires_grad_() for seed in (0, 1)], [logits(2), logits(3)]
    first, second = token_distillation_losses(tokens, teachers, temperature)
    first.backward()
    assert tokens[0].grad.abs().max() > 0
    assert tokens[1].grad is None or not tokens[1].grad.any()
    swapped = token_distillation_losses(tokens[::-1], teachers[::-1], temperature)
    torch.testing.assert_close(swapped, torch.stack([second, first]))
    agreed = token_distillation_losses(tokens, [token + 7 for token in tokens], temperature)
    assert agreed.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_refuses_a_token_without_a_teacher():
    with pytest.raises(ValueError, match=r"there are 2 token\(s\) and 1 teacher\(s\)"):
        token_distillation_losses([logits(0), logits(1)], [logits(2)])

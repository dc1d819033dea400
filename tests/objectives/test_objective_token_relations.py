import math

import pytest
import torch

from hgkd_hf.objectives.token_relations import log_relations, relation_losses


def attention(heads: int = 2, tokens: int = 3, width: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, heads, tokens, width, generator=generator, dtype=torch.float64) for name in "qkv"}


def test_by_hand():
    """Every relation, image, head, query and key one by one."""
    student, teacher = attention(width=4), attention(width=6, seed=1)

    def probabilities(side, name, b, h, i):
        left, right = side[name[0]][b, h, i].tolist(), side[name[1]][b, h].tolist()
        scores = [math.exp(sum(x * y for x, y in zip(left, key)) / math.sqrt(len(left))) for key in right]
        return [score / sum(scores) for score in scores]

    losses = relation_losses(student, teacher, ("qk", "vv"))
    assert list(losses) == ["qk", "vv"]
    for name, loss in losses.items():
        rows = []
        for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
            p, q = probabilities(teacher, name, b, h, i), probabilities(student, name, b, h, i)
            rows.append(sum(x * math.log(x / y) for x, y in zip(p, q)))
        assert loss.item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)


@pytest.mark.parametrize("relations", [("qk", "vv"), ("qq", "kk", "vv", "qk")])
def test_a_rotation_of_all_channels_changes_nothing(relations):
    """Nor does the order of the tokens, if it changes for both; each relation sums to 1 over keys."""
    student, teacher = attention(width=4), attention(width=4, seed=1)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    before = relation_losses(student, teacher, relations)
    turned = relation_losses({name: value @ rotation for name, value in student.items()}, teacher, relations)
    order = [2, 0, 1]
    permuted = ({name: value[:, :, order] for name, value in side.items()} for side in (student, teacher))
    for after in (turned, relation_losses(*permuted, relations)):
        torch.testing.assert_close(after, before)
    torch.testing.assert_close(log_relations(student["q"], student["k"]).exp().sum(-1), torch.ones(2, 2, 3).double())


def test_zero_for_equals_and_the_teacher_is_constant():
    student = {name: value.requires_grad_() for name, value in attention().items()}
    teacher = {name: value.requires_grad_() for name, value in attention().items()}
    assert sum(relation_losses(student, teacher, ("qk", "vv")).values()).abs() < 1e-6
    other = {name: value.requires_grad_() for name, value in attention(seed=1).items()}
    sum(relation_losses(other, teacher, ("qk", "vv")).values()).backward()
    assert all(value.grad is None for value in teacher.values())
    assert all(value.grad.abs().max() > 0 for value in other.values())


def test_refuses_other_heads_and_tokens():
    for other in (attention(heads=3), attention(tokens=4)):
        with pytest.raises(ValueError, match=r"relations qk .* are \(2, 2, 3, 3\), but the teacher's are \(2, "):
            relation_losses(attention(), other, ("qk",))

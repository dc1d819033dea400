import math

import pytest
import torch

from hgkd_hf.objectives.assignment import allowed_pairs, assignment_loss, dino_targets, msn_targets, swav_targets


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values, temperature):
    exps = [math.exp(v / temperature) for v in values]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize(("targets", "temperature"), [(dino_targets, 0.07), (msn_targets, 0.025)])
def test_softmax_targets_by_hand(targets, temperature):
    cosines = scores(3, 4).tanh()
    expected = [softmax(row, temperature) for row in cosines.tolist()]
    torch.testing.assert_close(targets(cosines), torch.tensor(expected, dtype=torch.float64))


def test_msn_temperature_is_its_sharpened_softmax():
    cosines = scores(5, 8).tanh()
    sharpened = (cosines / 0.1).softmax(1) ** (1 / 0.25)
    torch.testing.assert_close(msn_targets(cosines), sharpened / sharpened.sum(1, keepdim=True))


def test_sinkhorn_by_hand():
    """The published form, on a prototypes x images table: exponentials, rows to 1/K, columns to 1/B, columns to 1."""
    z = 0.1 * scores(4, 3)
    k, b, epsilon = 3, 4, 0.03
    top = max(map(max, z.tolist()))
    q = [[math.exp((z[j, i].item() - top) / epsilon) for j in range(b)] for i in range(k)]
    for _ in range(3):
        q = [[v / sum(row) / k for v in row] for row in q]
        columns = [sum(row[j] for row in q) for j in range(b)]
        q = [[v / columns[j] / b for j, v in enumerate(row)] for row in q]
    expected = torch.tensor([[q[i][j] * b for i in range(k)] for j in range(b)], dtype=torch.float64)
    torch.testing.assert_close(swav_targets(z), expected)
    assert not torch.allclose(swav_targets(z, iterations=2), expected, atol=1e-3)


def test_sinkhorn_masses():
    """Every image weighs 1; every prototype B / K once the iterations have converged, nearly so after three."""
    z = 0.05 * scores(64, 8)
    for iterations, tolerance in [(3, 0.3), (300, 1e-9)]:
        q = swav_targets(z, iterations=iterations)
        torch.testing.assert_close(q.sum(1), torch.ones(64, dtype=torch.float64))
        torch.testing.assert_close(q.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=0, atol=tolerance)
    assert (swav_targets(z, iterations=0).sum(0) - 8).abs().max() > 1.0


def test_sinkhorn_without_iterations_is_a_softmax():
    z = scores(6, 5)
    torch.testing.assert_close(swav_targets(z, epsilon=0.05, iterations=0), (z / 0.05).softmax(1))


def test_sinkhorn_stays_finite_on_logits_of_any_size():
    q = swav_targets(1000 * scores(16, 5).float())
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(16))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("views", "terms"), [(10, 18), (12, 22), (6, 10), (2, 2)])
def test_number_of_terms(views, terms, swapped):
    assert len(allowed_pairs(views, swapped=swapped)) == terms


def test_allowed_pairs():
    assert allowed_pairs(4) == [(0, 0), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    assert allowed_pairs(4, swapped=True) == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    # One teacher crop: the other global view has no teacher, it does not become a local one.
    assert allowed_pairs(4, num_teacher_crops=1) == [(0, 0), (0, 2), (0, 3)]


@pytest.mark.parametrize("swapped", [False, True])
def test_loss_by_hand(swapped):
    students, targets = (
        [scores(2, 3, seed=v) for v in range(4)],
        [scores(2, 3, seed=9 + i).softmax(1) for i in range(2)],
    )
    per_pair = {}
    for i in range(2):
        for v in range(4):
            p = [softmax(row, 0.1) for row in students[v].tolist()]
            q = targets[i].tolist()
            per_pair[i, v] = sum(-q[b][k] * math.log(p[b][k]) for b in range(2) for k in range(3)) / 2
    own_or_other = [(0, 1), (1, 0)] if swapped else [(0, 0), (1, 1)]
    local = [(0, 2), (0, 3), (1, 2), (1, 3)]
    entropy = sum(-q * math.log(q) for target in targets for row in target.tolist() for q in row) / 4

    terms = assignment_loss(students, targets, swapped=swapped)
    assert terms["global"].item() == pytest.approx(sum(per_pair[pair] for pair in own_or_other) / 2)
    assert terms["local"].item() == pytest.approx(sum(per_pair[pair] for pair in local) / 4)
    assert terms["loss"].item() == pytest.approx(sum(per_pair[pair] for pair in own_or_other + local) / 6)
    assert terms["target_entropy"].item() == pytest.approx(entropy)
    # SwAV's rule: the mean over a teacher crop's pairs, then over the crops.
    per_crop = [[per_pair[pair] for pair in own_or_other + local if pair[0] == i] for i in range(2)]
    assert terms["loss"].item() == pytest.approx(sum(sum(crop) / len(crop) for crop in per_crop) / 2)


def test_a_student_that_equals_its_teacher_is_at_the_floor():
    """Equal scores and temperatures: the loss is the targets' entropy and nothing pulls."""
    views = [scores(4, 6, seed=v).requires_grad_() for v in range(2)]
    terms = assignment_loss(views, [dino_targets(v, 0.1) for v in views])
    torch.testing.assert_close(terms["loss"], terms["target_entropy"])
    assert "local" not in terms
    for gradient in torch.autograd.grad(terms["loss"], views):
        torch.testing.assert_close(gradient, torch.zeros(4, 6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_only_the_student_learns():
    student, teacher = scores(4, 6).requires_grad_(), scores(4, 6, seed=1).requires_grad_()
    for make in (dino_targets, msn_targets, swav_targets):
        assert not make(teacher).requires_grad
    assignment_loss([student] * 3, [teacher.softmax(1)] * 2)["loss"].backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_refusals():
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 4\)"):
        assignment_loss([torch.zeros(2, 3), torch.zeros(2, 3)], [torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="3 teacher crops"):
        assignment_loss([torch.zeros(2, 3)] * 4, [torch.zeros(2, 3)] * 3)
    with pytest.raises(ValueError, match="swapped"):
        allowed_pairs(1, 1, 1, swapped=True)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        swav_targets(torch.zeros(2, 3, 4))

import pytest
import torch
from torch.nn import functional as F

from hgkd_hf.objectives import prototypes as module
from hgkd_hf.objectives.prototypes import fit_prototypes, prototype_scores


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def planted(clusters=12, each=40, width=16, noise=0.05, seed=3):
    """Directions, and features around them whose lengths say nothing."""
    draw = generator(seed)
    directions = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q[:clusters]
    features = directions.repeat_interleave(each, 0) + noise * torch.randn(clusters * each, width, generator=draw)
    features = features * (0.01 + 100 * torch.rand(len(features), 1, generator=draw))
    return directions, features[torch.randperm(len(features), generator=draw)]


def test_scores_are_cosines():
    features, prototypes = torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8, -0.6], [0.0, -1.0, 0.0]])
    torch.testing.assert_close(prototype_scores(features, prototypes), expected)
    torch.testing.assert_close(prototype_scores(features[None], prototypes), expected[None])


@pytest.mark.parametrize("seed", range(5))
def test_recovers_planted_directions(seed):
    directions, features = planted()
    prototypes = fit_prototypes(features, 12, 10, generator(seed))
    nearest = (directions @ prototypes.T).max(1)
    assert nearest.indices.unique().numel() == 12
    assert nearest.values.min() > 0.99


def test_two_groups_by_hand():
    """Two groups on the circle: from any seeds, the prototypes are the directions of the unit vectors' sums."""
    features = torch.tensor([[2.0, 0.0], [0.0, 0.1], [1.0, 1.0], [-3.0, 0.0], [-1.0, -0.1]])
    prototypes = fit_prototypes(features, 2, 5, generator())
    unit = [row / row.norm() for row in features]
    expected = torch.stack([sum(unit[:3]), sum(unit[3:])])
    expected = expected / expected.norm(dim=1, keepdim=True)
    order = prototypes[:, 0].argsort(descending=True)
    torch.testing.assert_close(prototypes[order], expected)


def test_is_deterministic_and_unit_length():
    features = torch.randn(500, 8, generator=generator(1))
    first, again, other = (fit_prototypes(features, 20, 5, generator(seed)) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(20))


def test_the_length_of_features_does_not_matter():
    features = torch.randn(300, 8, generator=generator(1))
    lengths = 0.1 + torch.rand(300, 1, generator=generator(2))
    torch.testing.assert_close(
        fit_prototypes(features, 10, 5, generator()), fit_prototypes(features * lengths, 10, 5, generator())
    )


def test_iterations_bring_prototypes_nearer():
    features = F.normalize(torch.randn(1000, 8, generator=generator(1)), dim=1)
    served = [(features @ fit_prototypes(features, 30, n, generator()).T).amax(1).mean() for n in (0, 1, 5, 20)]
    assert served == sorted(served)
    assert served[3] > served[1] + 0.01


def test_an_empty_cluster_moves_to_the_worst_served_feature(monkeypatch):
    """Two prototypes start at one place: one takes every feature, the other the feature that is farthest from it."""
    features = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.5, 0.5, 0.7], [0.9, 0.3, 0.0]]), dim=1)
    monkeypatch.setattr(module, "_seeds", lambda rows, k, generator: rows[[0, 0]])
    prototypes = fit_prototypes(features, 2, 1, generator())
    expected = torch.stack([F.normalize(features.sum(0), dim=0), features[2]])
    torch.testing.assert_close(prototypes[prototypes[:, 2].argsort()], expected)


def test_as_many_prototypes_as_features_some_of_them_equal():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for seed in range(5):
        prototypes = fit_prototypes(features, 3, 4, generator(seed))
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(3))
        torch.testing.assert_close((features @ prototypes.T).amax(1), torch.ones(3))


def test_members_that_cancel_out_leave_a_direction():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(fit_prototypes(features, 1, 3, generator()).norm(dim=1), torch.ones(1))


def test_zero_features_are_left_out():
    features = torch.cat([torch.zeros(50, 4), torch.eye(4)])
    prototypes = fit_prototypes(features, 4, 3, generator())
    torch.testing.assert_close(prototypes[prototypes.argmax(1).argsort()], torch.eye(4))


def test_refusals():
    with pytest.raises(ValueError, match="k=4 must lie between 1 and the 3"):
        fit_prototypes(torch.cat([torch.ones(3, 2), torch.zeros(5, 2)]), 4, 1, generator())
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        fit_prototypes(torch.ones(2, 3, 4), 1, 1, generator())
    with pytest.raises(ValueError, match="finite"):
        fit_prototypes(torch.full((2, 3), torch.nan), 1, 1, generator())
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(2, 4\)"):
        prototype_scores(torch.ones(5, 3), torch.ones(2, 4))

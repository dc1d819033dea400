import math

import pytest
import torch

from hgkd_hf.evaluation import feature_rank, feature_std, linear_cka


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width):
    return torch.linalg.qr(normal(width, width, seed=5).double()).Q


@pytest.mark.parametrize("k", [1, 2, 7])
def test_rank_of_k_orthogonal_directions_of_equal_strength_is_k(k):
    directions = torch.linalg.qr(normal(20, k)).Q  # (20, k), orthonormal columns
    along = rotation(10)[:k].float()  # k orthonormal directions of ten
    assert feature_rank(3 * directions @ along) == pytest.approx(k, rel=1e-5)


def test_rank_by_hand():
    # Singular values 3, 1: p = (3/4, 1/4).
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert feature_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(expected)


def test_collapsed_features_have_rank_one_and_no_spread():
    collapsed = normal(1, 32).repeat(100, 1)
    assert feature_rank(collapsed) == pytest.approx(1.0, abs=1e-6)
    assert feature_std(collapsed) == pytest.approx(0.0, abs=1e-6)
    # One direction at any length is collapse too.
    assert feature_std(collapsed * torch.rand(100, 1).add(0.1)) == pytest.approx(0.0, abs=1e-6)
    assert feature_rank(torch.zeros(5, 3)) == feature_std(torch.zeros(5, 3)) == 0.0


def test_isotropic_features_have_spread_one_and_nearly_full_rank():
    isotropic = normal(4000, 32)
    assert feature_std(isotropic) == pytest.approx(1.0, abs=0.01)
    assert 31.5 < feature_rank(isotropic) <= 32


def test_cka_is_one_under_rotation_scale_and_shift():
    x = normal(60, 12).double()
    y = -2.5 * x @ rotation(12) + 4
    assert linear_cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, y) == pytest.approx(1.0, abs=1e-9)
    wider = torch.cat([y, torch.zeros(60, 30)], 1)
    assert linear_cka(x, wider) == linear_cka(wider, x) == pytest.approx(1.0, abs=1e-9)


def test_cka_of_independent_features_is_low_also_when_they_are_wide():
    x, y = normal(200, 400), normal(200, 300, seed=1)
    assert abs(linear_cka(x, y)) < 0.05
    half = torch.cat([x[:, :200], y[:, :200]], 1)
    assert linear_cka(x, half) == pytest.approx(0.5, abs=0.05)


def test_cka_equals_the_unbiased_hsic_of_gram_matrices():
    """Song et al. 2007: zero the diagonals; tr(KL) + 1K1 1L1 / ((n-1)(n-2)) - 2/(n-2) 1KL1, over n(n-3)."""

    def hsic(x, y):
        n, one = len(x), torch.ones(len(x), dtype=torch.float64)
        gram_x, gram_y = ((z @ z.T).fill_diagonal_(0) for z in (x.double(), y.double()))
        terms = (gram_x @ gram_y).trace() + (one @ gram_x @ one) * (one @ gram_y @ one) / ((n - 1) * (n - 2))
        return (terms - 2 / (n - 2) * (one @ gram_x @ gram_y @ one)) / (n * (n - 3))

    x, y = normal(30, 9) + 1, (normal(30, 9) @ normal(9, 6, seed=1)).relu()
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert linear_cka(x, y) == pytest.approx(expected.item(), abs=1e-9)


def test_cka_of_collapsed_features_is_undefined():
    for count in range(4, 24):  # the mean of equal float64 rows is not always exact
        assert math.isnan(linear_cka((normal(1, 7).double() / 3).repeat(count, 1), normal(count, 3)))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="5 rows and y has 6"):
        linear_cka(normal(5, 2), normal(6, 2))
    with pytest.raises(ValueError, match="at least 4"):
        linear_cka(normal(3, 2), normal(3, 2))
    for function in (feature_rank, feature_std):
        with pytest.raises(ValueError, match=r"\(2, 3, 4\), expected \(N, D\)"):
            function(normal(2, 3, 4))

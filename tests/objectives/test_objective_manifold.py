import math
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hgkd_hf.objectives.manifold import inter_image_loss, intra_image_loss, manifold_loss, random_sample_loss


def tokens(batch=3, count=4, width=5, seed=0):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def mean_squared_difference(student, teacher, pairs):
    """Over pairs ((image, token), (image, token)), by plain loops."""
    errors = [(cosine(student[p], student[q]) - cosine(teacher[p], teacher[q])) ** 2 for p, q in pairs]
    return sum(errors) / len(errors)


S, T = tokens(width=5), tokens(width=7, seed=1)  # widths need not agree
B, N = S.shape[:2]
FULL = [((a, i), (b, j)) for a, i, b, j in product(range(B), range(N), range(B), range(N))]


def test_intra_image_by_hand():
    pairs = [((b, i), (b, j)) for b, i, j in product(range(B), range(N), range(N))]
    assert intra_image_loss(S, T).item() == pytest.approx(mean_squared_difference(S, T, pairs))


def test_inter_image_by_hand():
    pairs = [((a, n), (b, n)) for n, a, b in product(range(N), range(B), range(B))]
    assert inter_image_loss(S, T).item() == pytest.approx(mean_squared_difference(S, T, pairs))


def test_random_sample_by_hand():
    """K rows of one permutation of the image-major tokens, the same of student and teacher."""
    rows = [divmod(row, N) for row in torch.randperm(B * N, generator=generator(7))[:5].tolist()]
    expected = mean_squared_difference(S, T, list(product(rows, rows)))
    assert random_sample_loss(S, T, 5, generator(7)).item() == pytest.approx(expected)


@pytest.mark.parametrize("num_samples", [B * N, 192])
def test_enough_samples_are_the_full_manifold(num_samples):
    expected = mean_squared_difference(S, T, FULL)
    for seed in range(3):
        assert random_sample_loss(S, T, num_samples, generator(seed)).item() == pytest.approx(expected)


def test_named_terms_and_weights():
    s2, t2 = tokens(seed=2), tokens(seed=3)
    terms = manifold_loss(
        [S, s2], [T, t2], generator(), intra_weight=4, inter_weight=0.1, random_weight=0.2, num_samples=192
    )
    for name, term in [("intra_image", intra_image_loss), ("inter_image", inter_image_loss)]:
        torch.testing.assert_close(terms[name], (term(S, T) + term(s2, t2)) / 2)
    full = (random_sample_loss(S, T, 192, generator()) + random_sample_loss(s2, t2, 192, generator())) / 2
    torch.testing.assert_close(terms["random_sample"], full)
    expected = 4 * terms["intra_image"] + 0.1 * terms["inter_image"] + 0.2 * terms["random_sample"]
    torch.testing.assert_close(terms["loss"], expected)
    assert manifold_loss([S, s2], [T, t2], generator())["loss"].item() == pytest.approx(expected.item())


def rotation(width):
    return torch.linalg.qr(torch.randn(width, width, generator=generator(4), dtype=torch.float64)).Q


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f,
        lambda f: f @ rotation(5),
        lambda f: f * (0.1 + torch.rand(B, N, 1, generator=generator(5), dtype=torch.float64)),
        lambda f: torch.cat([f, torch.zeros_like(f)], -1),
    ],
    ids=["identical", "rotated", "scaled per token", "wider"],
)
def test_zero_where_the_cosines_are_the_same(change):
    for name, term in manifold_loss([change(S)], [S], generator()).items():
        assert term.item() == pytest.approx(0, abs=1e-24), name


@pytest.mark.parametrize("seed", [0, 1])
def test_not_zero_where_they_differ(seed):
    for name, term in manifold_loss([S], [tokens(seed=seed + 1)], generator(), num_samples=6).items():
        assert term.item() > 1e-3, name


def test_one_image_has_no_relations_across_images():
    assert inter_image_loss(S[:1], T[:1]).item() == pytest.approx(0, abs=1e-24)
    assert intra_image_loss(S[:1], T[:1]).item() > 1e-3


def test_the_generator_decides_the_sample():
    draws = [random_sample_loss(S, T, 3, generator(seed)).item() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    shared = generator()
    assert random_sample_loss(S, T, 3, shared) != random_sample_loss(S, T, 3, shared)


def test_only_the_student_learns():
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    manifold_loss([student], [teacher], generator())["loss"].backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: manifold_loss([s], [T], generator(), num_samples=5)["loss"], student)


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


def test_the_whole_manifold_is_never_built():
    batch, count, samples = 16, 12, 20
    student = tokens(batch, count, 4).requires_grad_()
    with LargestTensor() as largest:
        terms = manifold_loss([student], [tokens(batch, count, 6, seed=1)], generator(), num_samples=samples)
        terms["loss"].backward()
    assert largest.numel == max(batch * count**2, count * batch**2, samples**2) < (batch * count) ** 2


def test_refusals():
    with pytest.raises(ValueError, match=r"\(3, 4, 5\).*\(3, 9, 5\)"):
        intra_image_loss(S, tokens(count=9))
    with pytest.raises(ValueError, match=r"\(3, 4, 5\).*\(2, 4, 5\)"):
        inter_image_loss(S, tokens(batch=2))
    with pytest.raises(ValueError, match=r"\(12, 5\)"):
        random_sample_loss(S.flatten(0, 1), T, 3, generator())
    with pytest.raises(ValueError, match="2 student layers cannot be paired with 1"):
        manifold_loss([S, S], [T], generator())

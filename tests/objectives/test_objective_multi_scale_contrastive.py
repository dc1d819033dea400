import math

import pytest
import torch
from torch.nn import functional as F

from hgkd_hf.objectives.multi_scale_contrastive import (
    feature_wise_loss,
    multi_scale_contrastive_loss,
    pool_regions,
    sample_wise_loss,
    selection_weights,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarity(a, b, temperature=0.1):
    a, b = a.tolist(), b.tolist()
    dot = sum(x * y for x, y in zip(a, b))
    return math.exp(dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)) / temperature)


@pytest.mark.parametrize(("layout", "counts"), [("grid", [1, 4, 16]), ("sliding", [1, 9, 49])])
def test_regions_of_an_8x8_map(layout, counts):
    maps = random(2, 3, 8, 8)
    regions = pool_regions(maps, layout)
    assert [tuple(r.shape) for r in regions] == [(2, count, 3) for count in counts]
    for r, window in zip(regions, (8, 4, 2)):
        stride = window if layout == "grid" else window // 2
        starts = [(y, x) for y in range(0, 9 - window, stride) for x in range(0, 9 - window, stride)]
        for index, (y, x) in enumerate(starts):
            torch.testing.assert_close(r[:, index], maps[:, :, y : y + window, x : x + window].mean((2, 3)))


def test_regions_of_other_maps():
    def counts(height, width, layout):
        return [r.shape[1] for r in pool_regions(random(1, 2, height, width), layout)]

    assert counts(1, 1, "sliding") == [1]
    assert counts(2, 2, "grid") == [1, 4]  # the quarter is the half
    assert counts(7, 7, "grid") == [1, 4, 49]  # windows 7, 3, 1
    assert counts(7, 7, "sliding") == [1, 25, 49]
    assert counts(4, 8, "grid") == [1, 4, 16]  # windows (4, 8), (2, 4), (1, 2)


def test_selection_by_hand():
    """Two classes, told by the sign of the one channel. Image 0 is right as a whole, image 1 wrong."""
    regions = [torch.tensor([[[2.0]], [[2.0]]]), torch.tensor([[[1.0], [-1.0]], [[1.0], [-1.0]]])]
    labels = torch.tensor([1, 0])

    def classifier(x):
        return torch.cat([-x, x], -1)

    def select(mode):
        return [w.tolist() for w in selection_weights(regions, classifier, labels, mode)]

    assert select("all") == [[[1], [1]], [[1, 1], [1, 1]]]
    assert select("consistent") == [[[1], [1]], [[1, 0], [0, 1]]]  # the whole map stays, also where it is wrong
    assert select("sdd") == [[[1], [1]], [[1, 2], [1, 2]]]


def test_sample_wise_by_hand():
    student, teacher = random(3, 2, 4), random(3, 2, 4, seed=1)
    weights = torch.tensor([[1, 0], [2, 1], [1, 1]], dtype=torch.float64)
    total = 0
    for b in range(3):
        for r in range(2):
            positive = similarity(student[b, r], teacher[b, r])
            everything = sum(similarity(student[b, r], teacher[d, r]) for d in range(3))
            total -= weights[b, r].item() * math.log(positive / everything)
    assert sample_wise_loss(student, teacher, weights).item() == pytest.approx(total / 6)


def test_images_of_one_label_are_no_negatives():
    student, teacher, weights = random(4, 2, 4), random(4, 2, 4, seed=1), torch.ones(4, 2, dtype=torch.float64)
    labels = [5, 7, 5, 5]
    total = 0
    for b in range(4):
        for r in range(2):
            candidates = [d for d in range(4) if d == b or labels[d] != labels[b]]
            everything = sum(similarity(student[b, r], teacher[d, r]) for d in candidates)
            total -= math.log(similarity(student[b, r], teacher[b, r]) / everything)
    loss = sample_wise_loss(student, teacher, weights, labels=torch.tensor(labels))
    assert loss.item() == pytest.approx(total / 8)
    # Whole objective: all of one label leaves an image only itself.
    maps = random(3, 4, 4, 4), random(3, 4, 4, 4, seed=1)
    same = multi_scale_contrastive_loss(*maps, labels=torch.zeros(3, dtype=torch.long), exclude_same_label=True)
    assert same["sample_wise"].item() == pytest.approx(0, abs=1e-12)
    assert multi_scale_contrastive_loss(*maps, labels=torch.zeros(3, dtype=torch.long))["sample_wise"] > 0.1


def test_feature_wise_by_hand():
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    weights = torch.tensor([[1, 0, 2], [2, 1, 1]], dtype=torch.float64)
    total = 0
    for b in range(2):
        for r in range(3):
            positive = similarity(student[b, r], teacher[b, r])
            everything = sum(similarity(student[b, r], teacher[b, s]) for s in range(3))
            total -= weights[b, r].item() * math.log(positive / everything)
    assert feature_wise_loss(student, teacher, weights).item() == pytest.approx(total / 6)


@pytest.mark.parametrize("selection", ["all", "consistent", "sdd"])
def test_whole_objective_puts_the_terms_together(selection):
    """All regions in the sample-wise mean; those of the half and quarter windows in the feature-wise one."""
    student, teacher, weight = random(5, 6, 4, 4), random(5, 6, 4, 4, seed=1), random(3, 6, seed=2)
    labels = torch.tensor([0, 1, 2, 0, 1])
    terms = multi_scale_contrastive_loss(
        student,
        teacher,
        layout="grid",
        selection=selection,
        classifier=lambda x: F.linear(x, weight),
        labels=labels,
        temperature=0.2,
        sample_weight=3.0,
        feature_weight=0.5,
    )
    students, teachers = pool_regions(student, "grid"), pool_regions(teacher, "grid")
    weights = selection_weights(teachers, lambda x: F.linear(x, weight), labels, selection)
    sample = sum(sample_wise_loss(s, t, w, 0.2) * s.shape[1] for s, t, w in zip(students, teachers, weights)) / 21
    fine = [feature_wise_loss(s, t, w, 0.2) for s, t, w in zip(students, teachers, weights)]
    torch.testing.assert_close(terms["sample_wise"], sample)
    torch.testing.assert_close(terms["feature_wise"], (4 * fine[1] + 16 * fine[2]) / 20)
    torch.testing.assert_close(terms["loss"], 3 * terms["sample_wise"] + 0.5 * terms["feature_wise"])


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_equal_features_give_the_entropy_floor(temperature):
    """Nothing to tell apart: every candidate is equally likely, the loss is the entropy of a uniform choice."""
    maps = random(1, 6, 1, 1).expand(5, 6, 8, 8)
    terms = multi_scale_contrastive_loss(maps * 2, maps, layout="grid", temperature=temperature)
    assert terms["sample_wise"].item() == pytest.approx(math.log(5))
    assert terms["feature_wise"].item() == pytest.approx((4 * math.log(4) + 16 * math.log(16)) / 20)


def test_a_student_that_equals_an_orthogonal_teacher():
    """Features as far apart as they go: log(1 + (B - 1) exp(-1 / t))."""
    regions = torch.eye(4, dtype=torch.float64)[:, None]
    loss = sample_wise_loss(regions, regions, torch.ones(4, 1))
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-1 / 0.1)))


def test_one_region_skips_the_feature_wise_term():
    terms = multi_scale_contrastive_loss(random(4, 6, 1, 1).requires_grad_(), random(4, 6, 1, 1, seed=1))
    assert terms["feature_wise"].item() == 0
    assert terms["loss"] == terms["sample_wise"] > 0
    terms["loss"].backward()


def test_the_order_of_images_does_not_matter():
    student, teacher, labels = random(6, 5, 4, 4), random(6, 5, 4, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    weight, order = random(3, 5, seed=2), torch.tensor([3, 0, 5, 1, 4, 2])

    def loss(s, t, y):
        return multi_scale_contrastive_loss(
            s,
            t,
            selection="consistent",
            classifier=lambda x: F.linear(x, weight),
            labels=y,
            exclude_same_label=True,
        )

    before, after = loss(student, teacher, labels), loss(student[order], teacher[order], labels[order])
    for name in before:
        torch.testing.assert_close(after[name], before[name])
    assert not torch.isclose(loss(student[order], teacher, labels)["loss"], before["loss"])


def test_only_the_student_learns():
    student, teacher = random(3, 4, 4, 4).requires_grad_(), random(3, 4, 4, 4, seed=1).requires_grad_()
    multi_scale_contrastive_loss(student, teacher)["loss"].backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: multi_scale_contrastive_loss(s, teacher)["loss"], student)


def test_refusals():
    maps = random(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        multi_scale_contrastive_loss(maps, random(2, 3, 2, 2))
    with pytest.raises(ValueError, match="classifier"):
        multi_scale_contrastive_loss(maps, maps, selection="sdd", labels=torch.zeros(2))
    with pytest.raises(ValueError, match="labels"):
        multi_scale_contrastive_loss(maps, maps, selection="sdd", classifier=lambda x: x)
    with pytest.raises(ValueError, match="labels"):
        multi_scale_contrastive_loss(maps, maps, exclude_same_label=True)
    with pytest.raises(ValueError, match="'diagonal'"):
        pool_regions(maps, "diagonal")
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        pool_regions(maps[..., 0])
    with pytest.raises(ValueError, match="'best'"):
        selection_weights(pool_regions(maps), lambda x: x, torch.zeros(2), "best")
    with pytest.raises(ValueError, match=r"\(2, 9, 3\)"):
        selection_weights(pool_regions(maps)[1:], lambda x: x, torch.zeros(2), "sdd")
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), \(2, 3, 5\), \(2, 3\)"):
        sample_wise_loss(random(2, 3, 4), random(2, 3, 5), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), \(2, 3, 4\), \(2, 1\)"):
        feature_wise_loss(random(2, 3, 4), random(2, 3, 4), torch.ones(2, 1))

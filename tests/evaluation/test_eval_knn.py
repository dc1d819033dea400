import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from hgkd_hf.evaluation import Features, knn_accuracy


def clusters(count, seed, classes=7, width=12):
    """Overlapping clusters with gaps in their labels: an accuracy well between chance and 1."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return Features(centres[labels] + 2.2 * torch.randn(count, width, generator=generator), 10 * labels)


@pytest.mark.parametrize("k", [1, 5, 20, 300])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 1e-4])
def test_equals_scikit_learn(k, temperature):
    train, test = clusters(300, 0), clusters(211, 1)

    def weights(distance):  # cosine distance = 1 - similarity; the shift cancels in the vote
        return np.exp(-(distance - distance.min(1, keepdims=True)) / temperature)

    reference = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    reference.fit(train.features.double().numpy(), train.labels.numpy())
    expected = reference.score(test.features.double().numpy(), test.labels.numpy())
    accuracy = knn_accuracy(train, test, k=k, temperature=temperature)
    assert accuracy == pytest.approx(expected, abs=1e-12)
    assert 0.2 < accuracy < 0.9


def test_by_hand():
    """One near neighbour of class 0 against two further ones of class 1: the temperature decides."""
    angles = torch.tensor([0.0, 60.0, -60.0, 180.0]) * math.pi / 180
    train = Features(torch.stack([angles.cos(), angles.sin()], 1) * 3, torch.tensor([0, 1, 1, 2]))
    test = Features(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))
    # exp(1 / T) against 2 exp(0.5 / T): equal at T = 0.5 / ln 2 = 0.7213.
    assert knn_accuracy(train, test, k=3, temperature=0.72) == 1.0
    assert knn_accuracy(train, test, k=3, temperature=0.7227) == 0.0
    assert knn_accuracy(train, test, k=1, temperature=100.0) == 1.0


def test_ties_have_one_outcome():
    same = torch.ones(4, 3)
    query = Features(torch.ones(1, 3) / 3, torch.tensor([5]))
    # Equally near: the earlier in train; equal votes: the smaller label.
    assert knn_accuracy(Features(same, torch.tensor([5, 1, 1, 1])), query, k=1) == 1.0
    assert knn_accuracy(Features(same, torch.tensor([9, 5, 1, 1])), query, k=2) == 1.0
    assert knn_accuracy(Features(same, torch.tensor([9, 5, 5, 1])), query, k=3) == 1.0


def test_the_chunk_size_never_changes_the_result():
    """Every image three times under different labels, so that ties decide, also across blocks."""
    base = clusters(40, 3)
    train = Features(base.features.repeat(3, 1), torch.randint(5, (120,), generator=torch.Generator().manual_seed(0)))
    test = Features(base.features * 1.7, train.labels[:40])
    results = {
        (k, size): knn_accuracy(train, test, k=k, chunk_size=size)
        for k in (1, 2, 3, 7)
        for size in (1, 2, 13, 40, 119, 1024)
    }
    for (k, _), accuracy in results.items():
        assert accuracy == results[k, 1024]
    assert results[1, 1024] == 1.0  # the first copy carries the query's own label
    assert len(set(results.values())) > 1


def test_a_zero_feature_is_no_ones_neighbour():
    train = Features(torch.tensor([[0.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 1]))
    assert knn_accuracy(train, Features(torch.tensor([[1.0, 0.0]]), torch.tensor([1])), k=1) == 1.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"k": 31}, "k=31 must lie between 1 and the 30 images of train"),
        ({"k": 0}, "k=0"),
        ({"temperature": 0.0}, "temperature=0.0 must be greater than 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_a_setting_out_of_range_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        knn_accuracy(clusters(30, 0), clusters(5, 1), **setting)


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="labels"):
        knn_accuracy(clusters(30, 0), Features(torch.ones(2, 12)))
    with pytest.raises(ValueError, match="width 12, test has width 8"):
        knn_accuracy(clusters(30, 0), clusters(5, 1, width=8))


def test_a_training_in_tf32_does_not_move_the_result():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "topk", watched := Watched(torch.Tensor.topk))
            knn_accuracy(clusters(300, 0), clusters(50, 1))
        assert watched.precisions == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


class Watched:
    """A method of tensors that notes how precise products are when it is called."""

    def __init__(self, method):
        self.method, self.precisions = method, set()

    def __get__(self, tensor, kind):
        self.precisions.add(torch.get_float32_matmul_precision())
        return self.method.__get__(tensor, kind)


def test_images_that_float32_cannot_tell_apart_are_compared_again():
    """The nearest of 30 is nearer by 1e-9: float64 sees it, float32 does not."""
    tilt = torch.full((30,), 1e-2, dtype=torch.float64)
    tilt[17] -= 1e-7
    bank = torch.stack([tilt.cos(), tilt.sin()], 1).float()
    exact = torch.nn.functional.normalize(bank.double(), dim=1)[:, 0]
    nearest = int(exact.argmax())
    labels = torch.zeros(30, dtype=torch.long)
    labels[nearest] = 1
    query = Features(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert (exact == exact.max()).sum() == 1
    assert knn_accuracy(Features(bank, labels), query, k=1) == 1.0

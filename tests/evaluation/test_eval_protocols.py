import pytest
import torch

from hgkd_hf.evaluation import Features, ProtocolSettings, knn_accuracy, linear_probe, low_shot_probe, run_protocols


def clusters(seed: int, count: int = 60) -> Features:
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return Features(centres[labels] + torch.randn(count, 8, generator=generator), labels)


def test_metrics_are_those_of_the_functions():
    bank, queries = clusters(0), clusters(1)
    settings = ProtocolSettings(knn_k=5, knn_temperature=0.2, shots=(2,), draws=3, seed=4)
    metrics = run_protocols(bank, queries, settings=settings, teacher_queries=queries)
    assert metrics["knn_accuracy"] == knn_accuracy(bank, queries, k=5, temperature=0.2)
    assert metrics["linear_accuracy"] == linear_probe(bank, queries, seed=4).accuracy
    few = low_shot_probe(bank, queries, shots=(2,), draws=3, seed=4)[2]
    assert (metrics["2_shot_accuracy"], metrics["2_shot_deviation"]) == few
    assert metrics["teacher_cka"] == pytest.approx(1)


def test_only_the_wanted_protocols_run():
    assert set(run_protocols(clusters(0), clusters(1), ["knn"])) == {"knn_accuracy"}
    # k is lowered to the size of the bank
    small = clusters(0, count=6)
    assert run_protocols(small, clusters(1), ["knn"])["knn_accuracy"] == knn_accuracy(small, clusters(1), k=6)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="no protocol 'nearest': choose from knn, linear"):
        run_protocols(clusters(0), clusters(1), ["knn", "nearest"])

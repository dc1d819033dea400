import subprocess
import sys

import evaluate
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from hgkd_hf.evaluation.metrics import TopKAccuracy


@pytest.fixture
def top_k(tmp_path):
    def build(**settings):
        return TopKAccuracy(**settings, cache_dir=str(tmp_path))

    return build


def test_importing_the_room_does_not_import_evaluate():
    code = "import sys, hgkd_hf.evaluation; sys.exit('evaluate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_top_k_accuracy_over_batches_equals_scikit_learn(top_k):
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)
    metric = top_k(k=(1, 3, 5))
    for start in range(0, 50, 16):
        metric.add_batch(predictions=scores[start : start + 16], references=labels[start : start + 16])
    result = metric.compute()
    assert list(result) == ["top1_accuracy", "top3_accuracy", "top5_accuracy"]
    for k in (1, 3, 5):
        assert result[f"top{k}_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=k))
    # A metric starts afresh after compute, and takes NumPy and lists too.
    assert metric.compute(predictions=scores.numpy(), references=labels.tolist()) == result
    metric.add(prediction=scores[0], reference=scores[0].argmax())
    assert metric.compute()["top1_accuracy"] == 1.0


def test_top_k_takes_half_precision_with_gradients_and_breaks_ties_by_class(top_k):
    scores = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    result = top_k(k=(1, 2)).compute(predictions=scores, references=torch.tensor([0, 1, 3]))
    assert result == {"top1_accuracy": pytest.approx(1 / 3), "top2_accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(2, 4), [0, 1], "k=5 must be at most the 4 classes"),
        (torch.zeros(2, 6), [0, 6], "outside 0 ... 5"),
        (torch.zeros(2, 6), [0, -1], "outside 0 ... 5"),
        (torch.zeros(2, 6), [0], r"\(2, 6\) and references \(1,\)"),
        (torch.full((2, 6), torch.nan), [0, 1], "NaN"),
    ],
)
def test_top_k_refuses_what_it_cannot_score(top_k, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        top_k().compute(predictions=scores, references=labels)


def test_top_k_refuses_k_below_one(top_k):
    with pytest.raises(ValueError, match="k="):
        top_k(k=(0, 1))


def test_metrics_combine(top_k):
    combined = evaluate.combine([top_k(k=(1,)), top_k(k=(2,))])
    combined.add_batch(predictions=torch.eye(3), references=torch.tensor([0, 1, 0]))
    assert combined.compute() == {"top1_accuracy": pytest.approx(2 / 3), "top2_accuracy": 1.0}

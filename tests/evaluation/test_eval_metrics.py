import math
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, top_k_accuracy_score

from hgkd_hf.evaluation.metrics import MeanIoU, TopKAccuracy


@pytest.fixture
def top_k(tmp_path):
    def build(**settings):
        return TopKAccuracy(**settings, cache_dir=str(tmp_path))

    return build


@pytest.fixture
def mean_iou(tmp_path):
    def build(*args, **settings):
        return MeanIoU(*args, **settings, cache_dir=str(tmp_path))

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


def test_mean_iou_by_hand(mean_iou):
    prediction = torch.tensor([[0, 0, 1], [1, 2, 2]])
    reference = torch.tensor([[0, 1, 1], [1, 255, 0]])
    # Pixels (reference, prediction): 00, 10, 11, 11, ignored, 02. Confusion, rows = reference:
    # 0: [1, 0, 1]; 1: [1, 2, 0]; 2: [0, 0, 0]. IoU: 1/3, 2/3, 0/1.
    result = mean_iou(3).compute(predictions=prediction[None], references=reference[None])
    assert result["per_class_iou"] == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert result["mean_iou"] == pytest.approx(1 / 3)


def test_mean_iou_over_images_of_any_size_equals_scikit_learn(mean_iou):
    generator = np.random.default_rng(0)
    sizes = [(5, 7), (4, 4), (9, 2), (6, 6)]
    references = [generator.integers(0, 4, size).astype(np.uint8) for size in sizes]
    predictions = [np.where(generator.random(r.shape) < 0.6, r, generator.integers(0, 4, r.shape)) for r in references]
    for reference in references:
        reference[0] = 255
    metric = mean_iou(5)
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add(prediction=predictions[3], reference=references[3])
    result = metric.compute()

    flat = [np.concatenate([x.ravel() for x in maps]) for maps in (references, predictions)]
    counted = flat[0] != 255
    expected = jaccard_score(flat[0][counted], flat[1][counted], average=None, labels=range(4))
    assert result["per_class_iou"][:4] == pytest.approx(expected.tolist())
    assert math.isnan(result["per_class_iou"][4])  # class 4 is nowhere
    assert result["mean_iou"] == pytest.approx(expected.mean())


def test_an_ignored_class_does_not_enter_the_mean(mean_iou):
    prediction, reference = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1]])
    result = mean_iou(2, ignore_index=0).compute(predictions=[prediction], references=[reference])
    assert math.isnan(result["per_class_iou"][0])
    assert result["mean_iou"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0, 3]], [[0, 1]], "predictions hold a value outside 0 ... 2"),
        ([[0, 1]], [[0, 7]], "references hold a value outside 0 ... 2"),
        ([[0, 1]], [[0], [1]], "agree in shape"),
    ],
)
def test_mean_iou_refuses_what_is_no_class(mean_iou, prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        mean_iou(3).compute(predictions=torch.tensor([prediction]), references=torch.tensor([reference]))


def test_nothing_but_ignored_pixels_is_undefined(mean_iou):
    maps = torch.full((1, 2, 2), 255)
    assert math.isnan(mean_iou(2).compute(predictions=maps, references=maps)["mean_iou"])


def test_metrics_combine(top_k):
    combined = evaluate.combine([top_k(k=(1,)), top_k(k=(2,))])
    combined.add_batch(predictions=torch.eye(3), references=torch.tensor([0, 1, 0]))
    assert combined.compute() == {"top1_accuracy": pytest.approx(2 / 3), "top2_accuracy": 1.0}

import contextlib
import io
import json
import math

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hgkd_hf.evaluation.detection import STATISTICS, AveragePrecision


def metric(num_classes: int) -> AveragePrecision:
    return AveragePrecision(num_classes, keep_in_memory=True)


def random_images(seed: int, images: int = 12, classes: int = 3) -> tuple[list[dict], list[dict]]:
    """Labelled boxes of all COCO sizes, and predictions near them with wrong ones between."""
    generator = torch.Generator().manual_seed(seed)
    references, predictions = [], []
    for _ in range(images):
        count = int(torch.randint(0, 6, (), generator=generator))
        corners = torch.rand(count, 2, generator=generator) * 300
        sizes = 10 + torch.rand(count, 2, generator=generator) * 150
        boxes = torch.cat([corners, corners + sizes], 1)
        labels = torch.randint(classes, (count,), generator=generator)
        moved = boxes + torch.randn(boxes.shape, generator=generator) * 6
        wrong = torch.tensor([[5.0, 5.0, 60.0, 80.0]])
        found = torch.cat([moved, wrong])
        guesses = torch.cat([labels, torch.tensor([0])])
        scores = torch.rand(count + 1, generator=generator)
        references.append({"boxes": boxes, "labels": labels})
        predictions.append({"boxes": found, "labels": guesses, "scores": scores})
    return predictions, references


def coco_by_files(predictions, references, classes, folder) -> COCOeval:
    """The same images written as COCO's own files and evaluated by its own script's steps."""
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10 * c + 7, "name": str(c)} for c in range(classes)],
    }
    results = []
    for number, (prediction, reference) in enumerate(zip(predictions, references)):
        image_id = 1000 + number
        truth["images"].append({"id": image_id, "file_name": f"{number}.png", "width": 500, "height": 500})
        for box, label in zip(reference["boxes"].tolist(), reference["labels"].tolist()):
            x1, y1, x2, y2 = box
            annotation = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotation |= {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": 10 * label + 7}
            truth["annotations"].append(annotation)
        columns = (prediction[name].tolist() for name in ("boxes", "labels", "scores"))
        for (x1, y1, x2, y2), label, score in zip(*columns):
            result = {"image_id": image_id, "category_id": 10 * label + 7, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            results.append({**result, "score": score})
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_equals_pycocotools_on_files(tmp_path):
    predictions, references = random_images(0)
    expected = coco_by_files(predictions, references, 3, tmp_path).stats
    whole = metric(3)
    for start in range(0, 12, 5):
        part = slice(start, start + 5)
        whole.add_batch(predictions=predictions[part], references=references[part])
    result = whole.compute()
    assert 0.2 < result["ap"] < 0.9
    for name, value in zip(STATISTICS, expected):
        assert result[name] == pytest.approx(value, abs=1e-12)
    assert result["ar100"] == pytest.approx(expected[8], abs=1e-12)
    assert result["ap"] == pytest.approx(sum(result["per_class_ap"]) / 3)


def test_by_hand():
    """One labelled box, found with IoU 0.8: right at thresholds 0.50 ... 0.80, wrong at 0.85, 0.90, 0.95."""
    reference = {"boxes": [[0, 0, 100, 100]], "labels": [0]}
    prediction = {"boxes": [[0, 0, 100, 80]], "labels": [0], "scores": [0.5]}
    result = metric(1).compute(predictions=[prediction], references=[reference])
    assert result["ap"] == pytest.approx(0.7)
    assert (result["ap50"], result["ap75"], result["ap_large"]) == pytest.approx((1, 1, 0.7))
    assert math.isnan(result["ap_small"])

    # A surer wrong box before the right one: precision 1/2 at every recall.
    two = {"boxes": [[200, 200, 300, 300], [0, 0, 100, 100]], "labels": [0, 0], "scores": [0.9, 0.5]}
    assert metric(1).compute(predictions=[two], references=[reference])["ap"] == pytest.approx(0.5)


def test_classes_are_kept_apart_and_unlabelled_ones_left_out():
    reference = {"boxes": [[0, 0, 10, 10], [20, 20, 60, 60]], "labels": [0, 1]}
    prediction = {"boxes": [[0, 0, 10, 10], [20, 20, 60, 60]], "labels": [0, 2], "scores": [0.9, 0.8]}
    result = metric(3).compute(predictions=[prediction], references=[reference])
    assert result["per_class_ap"][:2] == pytest.approx([1, 0])
    assert math.isnan(result["per_class_ap"][2])
    assert result["ap"] == pytest.approx(0.5)


def test_no_prediction_at_all_is_zero():
    nothing = {"boxes": torch.zeros(0, 4), "labels": [], "scores": []}
    result = metric(1).compute(predictions=[nothing], references=[{"boxes": [[0, 0, 10, 10]], "labels": [0]}])
    assert result["ap"] == 0


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"boxes": [[0, 0, 1, 1]], "labels": [0], "scores": []}, "predictions hold 1 boxes, but 1 labels, 0 scores"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [2], "scores": [0.5]}, "a label outside 0 ... 1"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [0], "scores": [math.nan]}, "predictions contain NaN"),
        ({"boxes": [[0, 0, math.inf, 1]], "labels": [0], "scores": [0.1]}, "predictions contain NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_named(prediction, message):
    with pytest.raises(ValueError, match=message):
        metric(2).add(prediction=prediction, reference={"boxes": [], "labels": []})

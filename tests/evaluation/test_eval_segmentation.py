import math

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from hgkd_hf.evaluation.segmentation import intersection_over_union, pixel_counts


def test_mean_iou_by_hand():
    prediction = torch.tensor([[0, 0, 1], [1, 2, 2]])
    reference = torch.tensor([[0, 1, 1], [1, 255, 0]])
    # Pixels (reference, prediction): 00, 10, 11, 11, ignored, 02. Confusion, rows = reference:
    # 0: [1, 0, 1]; 1: [1, 2, 0]; 2: [0, 0, 0]. IoU: 1/3, 2/3, 0/1.
    mean, per_class = intersection_over_union(pixel_counts(prediction, reference, 3, 255))
    assert per_class == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert mean == pytest.approx(1 / 3)


@pytest.mark.parametrize(("num_classes", "ignore_index"), [(5, 255), (5, -100), (320, -100)])
def test_mean_iou_over_images_of_any_size_equals_scikit_learn_and_torchmetrics(num_classes, ignore_index):
    generator = np.random.default_rng(0)
    sizes = [(50, 70), (40, 40), (90, 20), (60, 60)]
    references = [generator.integers(0, num_classes - 1, size) for size in sizes]
    predictions = [
        np.where(generator.random(map_.shape) < 0.6, map_, generator.integers(0, num_classes - 1, map_.shape))
        for map_ in references
    ]
    for reference in references:
        reference[0] = ignore_index
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in zip(predictions, references)]
    mean, per_class = intersection_over_union(sum(pixel_counts(*pair, num_classes, ignore_index) for pair in pairs))

    flat = [np.concatenate([x.ravel() for x in maps]) for maps in (references, predictions)]
    counted = flat[0] != ignore_index
    expected = jaccard_score(flat[0][counted], flat[1][counted], average=None, labels=range(num_classes - 1))
    assert per_class[:-1] == pytest.approx(expected.tolist())
    assert math.isnan(per_class[-1])  # the last class is nowhere
    assert mean == pytest.approx(expected.mean())
    library = MulticlassJaccardIndex(num_classes, ignore_index=ignore_index)
    for pair in pairs:
        library.update(*(map_.flatten() for map_ in pair))
    assert mean == pytest.approx(library.compute().item())


def test_nothing_but_ignored_pixels_is_undefined():
    maps = torch.full((2, 2), 255)
    assert math.isnan(intersection_over_union(pixel_counts(maps.clamp(max=1), maps, 2, 255))[0])

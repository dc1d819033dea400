"""Commands that measure compare classes by name, and refuse queries that are in the bank."""

import argparse

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from hgkd_hf.cli import evaluate, export
from hgkd_hf.data import ImageTransform

CNN = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
COLOURS = {"cat": 0, "dog": 1}  # the channel that is bright


def split(names, seed, count=8):
    generator, images, labels = np.random.default_rng(seed), [], []
    for label, name in enumerate(names):
        for _ in range(count):
            pixels = generator.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., COLOURS.get(name, 2)] += 180
            images.append(Image.fromarray(pixels))
            labels.append(label)
    features = Features(image=datasets.Image(), label=ClassLabel(names=list(names)))
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture
def swapped(tmp_path):
    datasets.disable_progress_bars()
    DatasetDict(train=split(["cat", "dog"], 0), test=split(["dog", "cat"], 1)).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def flags(dataset, **values):
    defaults = dict.fromkeys(("dataset_config", "dataset_revision", "image_column", "label_column"))
    defaults |= {"split": "train", "accuracy_split": "test", "bank_images": 99, "accuracy_images": 99}
    return argparse.Namespace(dataset=dataset, allow_remote_images=False, **defaults | values)


class Brightest(torch.nn.Module):
    """Logits that are the mean of red and green: it knows cats (0) from dogs (1)."""

    def forward(self, pixels):
        return pixels.mean((2, 3))[:, :2]


TRANSFORM = ImageTransform(32, train=False)


def test_a_classifier_is_measured_by_the_names_of_its_classes(swapped):
    labelled = export.open_labelled(flags(swapped), {0: "cat", 1: "dog"})
    assert export.accuracy(Brightest(), labelled, TRANSFORM) == (1.0, 16)


def test_neighbours_are_compared_by_name(swapped):
    labelled = export.open_labelled(flags(swapped), None)
    assert export.accuracy(Brightest(), labelled, TRANSFORM) == (1.0, 16)


def test_a_classifier_of_other_classes_is_refused(swapped):
    with pytest.raises(
        ValueError, match="split 'test' of '.*' has the classes 'dog', 'cat', but the model has 'bus', "
    ):
        export.open_labelled(flags(swapped), {0: "bus", 1: "car"})


def test_export_of_a_model_for_other_classes_ends_before_it_begins(swapped, tmp_path):
    config = ResNetConfig(**CNN, id2label={0: "bus", 1: "car"}, label2id={"bus": 0, "car": 1})
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    arguments = ["--image_size=32", f"--dataset={swapped}", "--accuracy_split=test"]
    with pytest.raises(ValueError, match="but the model has 'bus', 'car'"):
        export.main([str(tmp_path / "model"), *arguments])
    assert not (tmp_path / "model" / "onnx").exists()


def test_neighbours_among_the_bank_are_refused(swapped):
    with pytest.raises(ValueError, match="where each finds itself: choose another --accuracy_split, or cut the"):
        export.open_labelled(flags(swapped, accuracy_split="train"), None)


def evaluated(swapped, tmp_path, **values):
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(**CNN)).save_pretrained(tmp_path / "model")
    settings = {"model": tmp_path / "model", "dataset": swapped, "image_size": 32, "output_dir": tmp_path / "out"}
    settings |= {"protocols": "knn", "knn_k": 3} | values
    return evaluate.main(
        [argument for name, value in settings.items() for argument in (f"--{name}", *str(value).split())]
    )


def test_probes_compare_classes_by_name(swapped, tmp_path):
    assert evaluated(swapped, tmp_path)["knn_accuracy"] == 1.0


def test_probes_on_their_own_bank_are_refused(swapped, tmp_path):
    with pytest.raises(ValueError, match="16 of 16 images looked at of split 'train' are among those .*--eval_sp"):
        evaluated(swapped, tmp_path, eval_split="train")
    assert "feature_rank" in evaluated(swapped, tmp_path, eval_split="train", protocols="representation")

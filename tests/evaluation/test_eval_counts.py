"""Evaluations count, and report, the images that they really used."""

import io

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from hgkd_hf.data import DistillationDataset, EvaluationDataset, ImageTransform, load_images
from hgkd_hf.evaluation import image_set_features
from hgkd_hf.finetuning.classification import ImageClassification
from hgkd_hf.finetuning.trainer import FineTuningArguments, FineTuningTrainer
from hgkd_hf.hub import StudentPublisher
from hgkd_hf.training.arguments import DistillationArguments
from hgkd_hf.training.trainer import DistillationTrainer

COUNT, BAD, UNLABELLED = 12, (3, 4, 11), (0,)
USED = COUNT - len(BAD) - len(UNLABELLED)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Twelve rows, of which three hold no image and one has no label."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def image(seed):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    def rows(offset):
        images = [{"bytes": b"broken" if i in BAD else image(offset + i), "path": f"{i}.png"} for i in range(COUNT)]
        labels = [None if i in UNLABELLED else i % 2 for i in range(COUNT)]
        features = Features(image=datasets.Image(), label=ClassLabel(names=["a", "b"]))
        return Dataset.from_dict({"image": images, "label": labels}, features=features)

    datasets.DatasetDict(train=rows(0), test=rows(100)).save_to_disk(tmp_path / "saved")
    return load_images(tmp_path / "saved")


def test_features_of_a_split(source):
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    features = image_set_features(model, source, ImageTransform(64, train=False), batch_size=5)
    assert len(features) == USED
    labels = [i % 2 for i in range(COUNT) if i not in BAD + UNLABELLED]
    assert features.labels.tolist() == labels


def test_knn_and_card_of_a_run(source, hgkd, tmp_path):
    transform = ImageTransform(64, train=False)
    data = DistillationDataset(
        source, ImageTransform(64, train=True), seed=0, cell_grid=hgkd.config.cell_grid, mask_ratio=0.6
    )
    queries = EvaluationDataset(load_images(source.name, split="test"), transform)
    args = DistillationArguments(
        str(tmp_path / "run"),
        per_device_train_batch_size=4,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        max_skipped_share=0.9,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(hgkd, args, data, (EvaluationDataset(source, transform), queries))
    publisher = StudentPublisher(trainer)
    trainer.add_callback(publisher)
    card = publisher.card
    trainer.train()
    trainer.evaluate()
    assert card.data["images"] == COUNT - len(BAD)  # labels are not needed
    assert f"among {USED} images of train" in card.protocol["knn_accuracy"]
    assert card.protocol["knn_accuracy"].endswith(f"on {USED} images of test")


def test_predictions_of_fine_tuning(source, tmp_path):
    task = ImageClassification(dataset=source.name, model="resnet-10", image_size=64, eval_split="test")
    args = FineTuningArguments(
        str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=5,
        disable_tqdm=True,
    )
    data = task.evaluation_data()
    trainer = FineTuningTrainer(task.build_model(), args, task, task.training_data(0), data)
    assert len(trainer.predict_all(data)) == USED

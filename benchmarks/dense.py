"""Did distillation help a task of places? One student, several pre-trainings in the task's own images, equal time.

    python benchmarks/dense.py --dataset path/to/camvid --teacher facebook/dinov2-small --budget 90 \\
        --image_column image --ignore_index 11 --class_names sky building pole ...
    python benchmarks/dense.py ... --finetune finetune_camvid --learning_rates 3e-4 1e-3 3e-3

Rows, budget, cache and resuming are those of `downstream.py`; pre-trainings see crops of about the scale at which the
task sees the images (--crop_scale). Measured are a linear probe of masks or of the insides of boxes (--probe
linear-boxes) on the frozen maps of the encoder and, of the students that keep a decoder, on its map too; and with
--finetune the task of that recipe, at the learning rate of the grid that is best for the row on the validation split,
with the first seed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from downstream import PRESETS, PRETRAINED, Benchmark, run
from downstream_table import markdown, summarise
from launch import check_same_settings, commit, launch_script
from transformers import AutoModel

from hgkd_hf.cli.evaluate import OF_MAPS
from hgkd_hf.students.presets import student_encoder_config

COLUMNS = {
    "probe_miou": "probe, mIoU",
    "decoder_miou": "probe with the decoder's map, mIoU",
    "finetuned_metric": "fine-tuned",
    "finetune_seconds": "fine-tuning [s]",
    "steps": "steps",
    "process_seconds": "pre-training [s]",
    "teach_seconds": "cache [s]",
}


@dataclass(frozen=True)
class DenseBenchmark(Benchmark):
    """`Benchmark` with the measures of dense tasks.

    Attributes:
        probe: settings of `hgkd evaluate`, with one protocol of maps; empty: no probe.
        finetune: settings of `hgkd finetune`; empty: none.
        learning_rates: of which the best on `validation_split`, with `tuning_seed`, is taken for all seeds of a row.
    """

    probe: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    validation_split: str = "validation"
    tuning_seed: int = 0

    def settings(self, kind: str) -> dict[str, Any]:
        """Frozen features do not depend on fine-tuning."""
        found = super().settings(kind)
        if kind == "frozen":
            for name in ("finetune", "learning_rates", "validation_split", "tuning_seed"):
                del found[name]
        else:
            del found["probe"]
        return found

    def student(self, row: str, seed: int) -> Path:
        """The folder of the row's student; that of random weights is made here."""
        folder = self.folder(row, seed) / "student"
        if row != "random":
            self.pretrained(row, seed)
        elif not folder.is_dir():
            torch.manual_seed(seed)
            AutoModel.from_config(student_encoder_config(self.preset.student)).save_pretrained(folder)
        return folder

    def frozen(self, row: str, seed: int) -> dict[str, float]:
        """Mean IoU of the probe, with and without the decoder's map."""
        student, figures = self.student(row, seed), {}
        if row != "random":
            summary = self.pretrained(row, seed)
            figures |= {name: summary[name] for name in ("steps", "process_seconds")}
        if row.endswith("-cached"):
            figures["teach_seconds"] = json.loads((self.cache() / "seconds.json").read_text())
        if self.probe:
            figures["probe_miou"] = self._probed(student, f"probed/{row}-{seed}", seed)
            if row != "random" and PRETRAINED[row].get("decoder") == "truncated":
                figures["decoder_miou"] = self._probed(student / "sparse_unet", f"probed/{row}-{seed}-decoder", seed)
        return figures

    def _probed(self, model: Path, name: str, seed: int) -> float:
        folder = self.output_dir / name
        flags = self.images | self.probe | {"eval_split": self.eval_split}
        launch_script("evaluate.py", folder, model=model, seed=seed, **flags)
        metric = f"{self.probe['protocols'].replace('-', '_')}_miou"
        return json.loads((folder / "results.json").read_text())["metrics"][metric]

    def fine_tuned(self, row: str) -> bool:
        """Random weights are, too: they are what the others have to beat."""
        return bool(self.finetune)

    def finetuned(self, row: str, seed: int) -> dict[str, float]:
        """The task's metric on the test split, at the row's learning rate."""
        rate = max(self.learning_rates, key=lambda rate: main_metric(self._tuned(row, rate)))
        folder = self.finetuned_folder(row, seed) / f"{rate:g}-test"
        if seed == self.tuning_seed and not folder.is_dir():
            shutil.copytree(self._tuned(row, rate), folder)  # resumed at its end: only evaluated
        self._fine_tune(row, seed, rate, folder, self.eval_split)
        trained = self._tuned(row, rate) if seed == self.tuning_seed else folder
        seconds = json.loads((trained / "summary.json").read_text())["train_seconds"]
        return {"finetuned_metric": main_metric(folder), "best_learning_rate": rate, "finetune_seconds": seconds}

    def _tuned(self, row: str, rate: float) -> Path:
        folder = self.finetuned_folder(row, self.tuning_seed) / f"{rate:g}"
        if (folder / "summary.json").is_file():
            check_same_settings(folder, self.finetune)
        else:
            self._fine_tune(row, self.tuning_seed, rate, folder, self.validation_split)
        return folder

    def _fine_tune(self, row: str, seed: int, rate: float, folder: Path, eval_split: str) -> None:
        model = self.preset.student if row == "random" else self.student(row, seed)  # its defaults are others
        flags = self.images | self.finetune | {"model": model, "seed": seed}
        launch_script("finetune.py", folder, **flags, learning_rate=rate, eval_split=eval_split)


def main_metric(run: Path) -> float:
    """Mean IoU or AP."""
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    return metrics["mean_iou"] if "mean_iou" in metrics else metrics["ap"]


ROWS = ("random", "spark", "unmasked", "hgkd", "hgkd-cached")
PRESET = replace(PRESETS["full"], crop_scale=(0.08, 0.3), cached_images=5_800, rows=ROWS)  # of one minute


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="images with masks or boxes: Hub id or path")
    parser.add_argument("--image_column")
    parser.add_argument("--eval_split", default="test")
    parser.add_argument("--teacher", help="Hub id or folder of a vision transformer")
    parser.add_argument("--teacher_layers", type=int, nargs="+", help="default: those that fit the teacher")
    parser.add_argument("--student", default=PRESET.student)
    parser.add_argument("--crop_scale", type=float, nargs=2, default=PRESET.crop_scale, help="of pre-training")
    parser.add_argument("--crop_size", type=int, default=PRESET.image_size, help="pixels of the crops of pre-training")
    parser.add_argument("--class_names", nargs="+")
    parser.add_argument("--ignore_index", type=int, default=255)
    parser.add_argument("--image_size", type=int, nargs="+", default=[192, 256], help="of the probe: height and width")
    parser.add_argument("--probe", choices=(*OF_MAPS, "none"), default=OF_MAPS[0])
    parser.add_argument("--finetune", metavar="RECIPE", help="of `hgkd finetune`")
    parser.add_argument("--finetune_steps", type=int, help="default: the recipe's")
    parser.add_argument("--finetune_size", type=int, nargs="+", help="height and width; default: the recipe's")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument(
        "--rows", default=",".join(PRESET.rows), help=f"comma-separated, of random, {', '.join(PRETRAINED)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=PRESET.seeds)
    parser.add_argument("--float32", action="store_true", help="for processors that are slow in bfloat16")
    parser.add_argument("--budget", type=float, default=90, help="seconds of process time of each pre-training")
    parser.add_argument("--pretraining_rate", type=float, default=PRESET.learning_rate, help="its learning rate")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/dense"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.rows = args.rows.split(",")
    if unknown := [row for row in args.rows if row not in ("random", *PRETRAINED)]:
        parser.error(f"--rows: there is no row {unknown[0]!r}: choose from random, {', '.join(PRETRAINED)}.")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    probe = {"protocols": args.probe, "image_size": args.image_size, "ignore_index": args.ignore_index}
    if args.class_names:
        probe["class_names"] = args.class_names
    finetune = {"recipe": args.finetune} if args.finetune else {}
    if args.finetune_steps:
        finetune["max_steps"] = args.finetune_steps
    if args.finetune_size:
        finetune["image_size"] = args.finetune_size
    if args.float32:
        finetune["bf16"] = False
    benchmark = DenseBenchmark(
        replace(
            PRESET,
            student=args.student,
            image_size=args.crop_size,
            crop_scale=tuple(args.crop_scale),
            learning_rate=args.pretraining_rate,
        ),
        dataset=args.dataset,
        eval_split=args.eval_split,
        teacher=args.teacher,
        teacher_layers=args.teacher_layers,
        classifier=None,
        output_dir=args.output_dir / Path(args.dataset).name / f"{args.budget:g}s",
        budget=args.budget,
        image_column=args.image_column,
        float32=args.float32,
        probe={} if args.probe == "none" else probe,
        finetune=finetune,
        learning_rates=tuple(args.learning_rates),
        tuning_seed=args.seeds[0],
    )
    cells, failures = run(benchmark, args.rows, args.seeds)
    table = summarise(cells, COLUMNS)
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *(arguments or sys.argv[1:])])
    print(f"\n{markdown(table, COLUMNS)}\n\nmean ± sample deviation over seeds {', '.join(map(str, args.seeds))}")
    print(f"commit {commit()}: {command}")
    for row, seeds in cells.items():
        if "best_learning_rate" in seeds[0]:
            print(f"{row}: fine-tuned at learning rate {seeds[0]['best_learning_rate']:g}")
    if args.json:
        result = {"command": command, "commit": commit(), "seeds": list(args.seeds)}
        args.json.write_text(json.dumps(result | {"table": table, "failures": failures}, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")

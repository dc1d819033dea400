"""Does a method help at all? Its student against the same student without it: equal steps, images and seeds.

    python benchmarks/relatives.py --dataset uoft-cs/cifar10 --classifier path/to/a/cnn --rows reviewkd wcord sskd
    python benchmarks/relatives.py --dataset uoft-cs/cifar10 --teacher facebook/dinov2-small --rows tinymim rcmae
    python benchmarks/relatives.py --dataset uoft-cs/cifar10 --classifiers path/to/a/cnn path/to/a/vit --rows coadvise

Methods that learn from labels are compared with labels alone, by top-1 of the student's own classifier and by kNN of
its features; methods without labels with the random weights that they start from, by kNN. A finished run is a folder
with a summary; the same command resumes after a stop.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from downstream import commit
from downstream_table import entry_text

from hgkd_hf.cli import distill

SETTINGS = {
    "image_size": 48,
    "crop_scale": [0.6, 1.0],
    "max_steps": 200,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "bf16": True,
    "knn_split": "test",
    "knn_bank_samples": 1000,
    "knn_query_samples": 2000,
    "save_strategy": "no",
    "disable_tqdm": True,
}
CNN = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 32}
CNN |= {"hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]}
VIT = {"model_type": "vit", "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3}
VIT |= {"intermediate_size": 768, "patch_size": 8}
REGISTERS = {"model_type": "dinov2_with_registers", "hidden_size": 192, "num_hidden_layers": 4}
REGISTERS |= {"num_attention_heads": 3, "patch_size": 8, "num_register_tokens": 2}
# By a classifier, at the size that it is thought to be trained at.
TAUGHT = {"student": CNN, "teacher": "classifier", "teacher_image_size": 64, "baseline": "labels"}
# Rows by name: the flags of `hgkd distill`; a teacher is that of the flag of its name, and `baseline` the row of the
# same student without the method, None where that is its random weights.
ROWS: dict[str, dict[str, Any]] = {
    "labels": {"student": CNN, "method": "kd", "objective": "labels", "baseline": None},
    "labels_vit": {"student": REGISTERS, "method": "kd", "objective": "labels", "baseline": None},
    "kd": TAUGHT | {"method": "kd"},
    "reviewkd": TAUGHT
    | {"method": "reviewkd", "teacher_layers": [2, 3, 4], "student_layers": [2, 3, 4], "warmup_share": 0.083},
    "wcord": TAUGHT | {"method": "wcord"},
    "sskd": TAUGHT | {"method": "sskd"},
    "coadvise": {
        "student": REGISTERS,
        "method": "coadvise",
        "teacher": "classifiers",
        "teacher_image_size": 56,  # of both: near 64, and four patches of 14 pixels
        "baseline": "labels_vit",
    },
    "tinymim": {
        "student": VIT,
        "method": "tinymim",
        "teacher": "teacher",
        "teacher_layers": [10],
        "per_device_train_batch_size": 16,
        "baseline": None,
    },
    "rcmae": {
        "student": CNN,
        "method": "rcmae",
        "momentum": 0.95,
        "image_size": 64,  # two cells on a side
        "per_device_train_batch_size": 16,
        "baseline": None,
    },
}


def summary_of(row: str, seed: int, where: argparse.Namespace) -> dict[str, Any]:
    """The summary of a row's run, from its folder or by work.

    Raises:
        ValueError: its teacher is not named, or the run fails.
    """
    folder = where.output_dir / f"{row}-{seed}"
    if not (folder / "summary.json").is_file():
        settings = SETTINGS | {"dataset": where.dataset, "seed": seed, "output_dir": folder} | ROWS[row]
        del settings["baseline"]
        if settings.get("teacher"):
            kind, settings["teacher"] = settings["teacher"], getattr(where, settings["teacher"])
            settings["teacher_dtype"] = "bfloat16"
            if settings["teacher"] is None:
                raise ValueError(f"row {row!r} needs a teacher: name one with --{kind}.")
        distill.main([word for name, value in settings.items() for word in flag(name, value)])
    return json.loads((folder / "summary.json").read_text())


def flag(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def compare(row: str, seeds: list[int], where: argparse.Namespace) -> list[str]:
    """The row's lines of the table, one a metric: without and with the method, and the gain, over the same seeds."""
    runs, baseline = [summary_of(row, seed, where) for seed in seeds], ROWS[row]["baseline"]
    metrics = {"top-1": "accuracy", "kNN": "knn_accuracy"} if baseline else {"kNN": "knn_accuracy"}
    others, when = ([summary_of(baseline, seed, where) for seed in seeds], "after") if baseline else (runs, "before")
    seconds, lines = statistics.fmean(run["process_seconds"] for run in runs), []
    for title, name in metrics.items():
        without = [run[when][f"{when}_{name}"] for run in others]
        method = [run["after"][f"after_{name}"] for run in runs]
        gains = [with_it - without_it for with_it, without_it in zip(method, without)]
        cells = [row, title, *(cell(values) for values in (without, method, gains))]
        lines.append(f"| {' | '.join(cells)} | {sum(gain > 0 for gain in gains)} of {len(gains)} | {seconds:.0f} |")
    return lines


def cell(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return entry_text({"mean": statistics.fmean(values), "deviation": deviation}, whole=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", required=True, help="labelled images with the splits train and test: Hub id or path"
    )
    parser.add_argument("--classifier", help="Hub id or folder of a CNN that classifies these classes")
    parser.add_argument(
        "--classifiers", nargs=2, metavar=("CNN", "VIT"), help="two of them, of different inductive bias"
    )
    parser.add_argument("--teacher", help="Hub id or folder of a vision transformer")
    parser.add_argument(
        "--rows", nargs="+", choices=[row for row in ROWS if not row.startswith("labels")], required=True
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/relatives"))
    where = parser.parse_args(arguments)
    for seed in where.seeds:  # all rows of a seed before the next, so that what is finished compares all rows
        for row in where.rows:
            for needed in filter(None, (ROWS[row]["baseline"], row)):
                summary_of(needed, seed, where)
    lines = [line for row in where.rows for line in compare(row, where.seeds, where)]
    print("| method | metric | without | with | gain | better in | process seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |", *lines, sep="\n")
    print(f"commit {commit()}: {shlex.join(['python', 'benchmarks/relatives.py', *(arguments or sys.argv[1:])])}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

"""See in a few minutes what distillation is for, offline: a teacher, students, a table, pictures.

    hgkd quickstart
    hgkd quickstart --short

On MNIST digits that lie on photographs (both are brought by packages of the extra `demo`), a small ViT learns from
the labels and outlines of 2,000 digits. Then students, small ResNets, learn without labels from 2,000 others: from
pixels alone, and from the ViT. The folder gets report.html, pictures, results.json, run.log and each run.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

from .errors import run_script
from .output import LOG_FILE, hush, log_to, show, step
from .parser import plain_parser

STUDENT = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128],
    "depths": [1, 1, 1],
}
TEACHER_STEPS = 1400
SHORT_STEPS, SHORT_IMAGES = 0.05, 0.25  # shares with --short
IMAGES, TEACHER_FOLDER = "images", "teacher"
RESULTS_FILE, REPORT_FILE = "results.json", "report.html"


@dataclass(frozen=True)
class Student:
    """A training of a student: its folder, its steps, and the flags of `hgkd distill` that are its own.

    On two cores the steps of each take about the same time.
    """

    folder: str
    steps: int
    flags: dict[str, Any]


def students() -> dict[str, Student]:
    """By the name of the table's row."""
    from ..demo.comparison import HGKD, HINTS, MASKED, SPARK

    pixels = {"feature_weight": 0, "pixel_weight": 1, "decoder": "full", "decoder_width": 64}
    classes = {"target_norm": "standardize", "teacher_layers": -1}  # of a teacher of the very classes: docs/choose.md
    return {
        SPARK: Student("spark", 220, pixels),
        HINTS: Student("hints", 380, {"method": "kd", "objective": "hint", "label_weight": 0}),
        HGKD: Student("hgkd", 390, classes),
        MASKED: Student("hgkd-masked", 330, classes | {"decoder_width": 64, "mask_ratio": 0.6}),
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = plain_parser("quickstart", __doc__)
    parser.add_argument(
        "--output_dir", default=Path("runs/quickstart"), type=Path, help="An earlier quickstart is replaced."
    )
    parser.add_argument("--seed", default=0, type=int, help="Of images, weights and trainings.")
    parser.add_argument("--short", action="store_true", help="A twentieth of the steps: shows that all parts work.")
    args = parser.parse_args(arguments)
    check_packages()
    clear(args.output_dir)
    hush()
    log_to(args.output_dir)
    return quickstart(args.output_dir, args.seed, args.short)


def check_packages() -> None:
    """Refuse to begin without the extra `demo`.

    Raises:
        ValueError: a package of it is missing.
    """
    for package in ("mlxtend", "skimage", "sklearn", "matplotlib"):
        if find_spec(package) is None:
            raise ValueError(f"the quickstart needs {package}: pip install 'hgkd_hf[demo]'.")


def clear(folder: Path) -> None:
    """Remove an earlier quickstart, and nothing else.

    Raises:
        ValueError: the folder holds something else, or no quickstart.
    """
    from ..demo.pictures import PICTURES

    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    ours = {IMAGES, TEACHER_FOLDER, LOG_FILE, RESULTS_FILE, REPORT_FILE, *PICTURES}
    ours |= {student.folder for student in students().values()}
    if found and (LOG_FILE not in found or found - ours):
        other = min(found - ours, default=min(found))
        raise ValueError(f"{folder} holds {other}, but no earlier quickstart alone: choose another --output_dir.")
    shutil.rmtree(folder, ignore_errors=True)


def quickstart(out: Path, seed: int, short: bool) -> dict:
    """The whole way; what `results.json` holds is returned."""
    from ..demo.comparison import TEACHER
    from ..demo.data import QuickstartImages, write_images
    from ..demo.teacher import train_teacher

    start, seconds = time.perf_counter(), {}
    images, teacher, steps = out / IMAGES, out / TEACHER_FOLDER, SHORT_STEPS if short else 1.0
    parts = QuickstartImages.make(seed, SHORT_IMAGES if short else 1.0)
    write_images(parts.unlabelled, images / "train.parquet", copies=2, seed=seed)
    write_images(parts.test, images / "test.parquet", copies=1, seed=seed)
    learned, tested = 2 * len(parts.unlabelled.labels), len(parts.test.labels)
    show(f"images: {learned:,} digits on photographs to learn from, {tested:,} to test on, 32 px")

    begin = time.process_time()
    train_teacher(parts.labelled, round(steps * TEACHER_STEPS), seed, teacher)
    seconds[TEACHER] = round(time.process_time() - begin, 1)
    show(f"teacher: a small ViT, from {len(parts.labelled.labels):,} other digits with labels")
    for name, student in students().items():
        with step():
            summary = distil(out, student, steps, seed)
        seconds[name] = summary["process_seconds"]
        show(f"student: {name}, {summary['steps']} steps without labels")

    return conclude(out, seconds, start, {"seed": seed, "short": short})


def conclude(out: Path, seconds: dict[str, float], start: float, facts: dict[str, Any]) -> dict:
    """Measure and draw what was trained, write the page and the results, and show the table.

    Args:
        out: the folder, with images, teacher and students.
        seconds: of processor time of each training, by row name.
        start: of the whole, by `time.perf_counter`.
        facts: seed and short.
    """
    from ..checkpoints.whole_folders import write_whole
    from ..demo.comparison import HGKD, MASKED, RANDOM, SPARK, TEACHER, compare
    from ..demo.page import write_page
    from ..demo.pictures import draw

    images, teacher = out / IMAGES, out / TEACHER_FOLDER
    runs = {name: out / student.folder for name, student in students().items()}
    comparison, features = compare(images, runs, teacher, seconds, facts["seed"])
    shown = {name: features[name] for name in (RANDOM, SPARK, HGKD, TEACHER)}
    pictures = draw(out, images, runs[HGKD], runs[MASKED], teacher, shown, runs)
    facts = facts | {"seconds": round(time.perf_counter() - start)}
    write_page(out / REPORT_FILE, comparison, pictures, runs, **facts)
    results = facts | comparison.to_dict()
    write_whole(out / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    show(f"\n{comparison.table()}\n\n{fill(comparison.reading(), 110)}\n")
    if facts["short"]:
        show(
            f"With --short, {SHORT_STEPS:.0%} of the steps: that all parts work is shown, and nothing by the numbers."
        )
    show(f"report: {out / REPORT_FILE}; all numbers: {out / RESULTS_FILE}; log: {out / LOG_FILE}")
    show(f"student, for AutoModel.from_pretrained: {runs[HGKD] / 'student'}; {facts['seconds']} s in all")
    return results


def distil(out: Path, student: Student, steps: float, seed: int) -> dict:
    """`hgkd distill` for one student, with a share of its steps; its summary."""
    from ..demo.comparison import IMAGE_SIZE
    from ..demo.data import SIZE
    from .distill import main as distill

    settings = {
        "dataset": out / IMAGES,
        "student": json.dumps(STUDENT),
        "teacher": out / TEACHER_FOLDER,
        "teacher_image_size": SIZE,
        "image_size": IMAGE_SIZE,
        "crop_scale": [0.8, 1.0],
        "flip_probability": 0,
        "max_steps": round(steps * student.steps),
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-3,
        "knn_split": "test",
        "knn_bank_samples": 500,
        "knn_query_samples": 500,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        "output_dir": out / student.folder,
    }
    flags = []
    for name, value in (settings | student.flags).items():
        flags += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return distill(flags)


if __name__ == "__main__":
    run_script(main)

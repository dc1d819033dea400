"""Export a finished student to ONNX, int8 and torch.export, and measure each.

    hgkd export runs/mine/student
    hgkd export runs/mine/student --dataset path/to/images --accuracy_split test
    hgkd export user/name --output_dir exported --image_size 160 --dataset uoft-cs/cifar10

Takes encoders, classifiers, segmenters and RT-DETR detectors. Writes onnx/model.onnx (float32, any batch and image
size; a segmenter's is for one size, a detector's for single images of one size), with --dataset onnx/model_int8.onnx
(int8, calibrated on images of it), and program.pt2 (torch.export). ONNX is compared with PyTorch. One table gives
size, latency at batch 1 and, with --accuracy_split, accuracy before and after; it goes into the student's card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.run_files import RECIPE_FILE
from .errors import run_script
from .output import hush, log_to, show
from .parser import plain_parser

if TYPE_CHECKING:
    from ..data import ImageSource, ImageTransform

BATCH = 32
METRICS = {"encoders": "kNN accuracy", "classifiers": "top-1 accuracy"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = plain_parser("export", __doc__)
    parser.add_argument("student", help="Folder or Hub id of a stock student.")
    parser.add_argument("--revision", help="Branch, tag or commit of the Hub id.")
    parser.add_argument("--output_dir", type=Path, help="Default: the student's folder.")
    parser.add_argument("--image_size", type=int, help="Side in pixels; default: the image processor's.")
    parser.add_argument("--fixed_size", action="store_true", help="Programs for this image size alone.")
    parser.add_argument("--dataset", help="Hub id or folder of images: calibrates int8.")
    parser.add_argument("--dataset_config", help="Configuration of the dataset.")
    parser.add_argument("--dataset_revision", help="Branch, tag or commit of the dataset.")
    parser.add_argument("--image_column", help="Needed where several columns hold images.")
    parser.add_argument("--label_column", help="Needed where it is not plain.")
    parser.add_argument(
        "--allow_remote_images", action="store_true", help="Open images that rows name outside of the dataset."
    )
    parser.add_argument("--split", default="train", help="Of the calibration images, and of kNN's labelled bank.")
    parser.add_argument("--calibration_images", type=int, default=128, help="Images that give int8 its ranges.")
    parser.add_argument("--accuracy_split", help="Labelled split: top-1 of a classifier, else kNN (k 20, T 0.07).")
    parser.add_argument("--accuracy_images", type=int, default=1000, help="Images of it that are classified.")
    parser.add_argument("--bank_images", type=int, default=2000, help="Labelled images that kNN looks up.")
    parser.add_argument("--threads", type=int, default=1, help="Of the latency measurement.")
    parser.add_argument("--rounds", type=int, default=50, help="Of the latency measurement.")
    args = parser.parse_args(arguments)
    for name in ("calibration_images", "accuracy_images", "bank_images", "threads", "rounds", "image_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}: at least 1 is needed (--{name}).")
    if args.accuracy_split and not args.dataset:
        raise ValueError(f"accuracy_split is {args.accuracy_split!r}, but there are no images: add --dataset.")
    if args.output_dir is None:
        if not Path(args.student).is_dir():
            raise ValueError(f"{args.student!r} is not a folder: name one to write to with --output_dir.")
        args.output_dir = Path(args.student)
    return args


def main(arguments: list[str] | None = None) -> list[dict]:
    args = parse(arguments)
    import torch  # here and below, after --help is answered

    from ..data import open_split
    from ..deployment import (
        OnnxStudent,
        StudentOutputs,
        check_onnx,
        export_onnx,
        export_program,
        kind_of,
        load_student,
        load_transform,
        median_latencies,
        quantize_int8,
    )
    from ..hub.machine import processor_name

    hush()
    out = args.output_dir
    torch.set_num_threads(args.threads)
    calibration = args.dataset and open_split(args, samples_field="calibration_images")
    model = load_student(args.student, args.revision)
    kind = kind_of(type(model).__name__)
    if args.accuracy_split and kind.noun not in METRICS:
        raise ValueError(
            f"accuracy is measured of {' and '.join(METRICS)}, not of {kind.noun}: drop --accuracy_split."
        )
    classes = model.config.id2label if kind.noun == "classifiers" else None
    labelled = open_labelled(args, classes) if args.accuracy_split else ()
    transform = load_transform(args.student, args.revision, args.image_size)
    height, width = transform.size
    out.mkdir(parents=True, exist_ok=True)
    if (out.parent / RECIPE_FILE).is_file():  # else the log would lie among what is published
        log_to(out.parent)

    program = export_program(model, transform.size, not args.fixed_size)
    torch.export.save(program, out / "program.pt2")
    files = {"PyTorch float32": out / "model.safetensors", "ONNX float32": out / "onnx/model.onnx"}
    export_onnx(program, files["ONNX float32"], kind.outputs)
    shapes = [(1, height, width)]
    shapes += [(3, height, width)] if kind.any_batch else []
    shapes += [(2, height + 32, width + 64)] if kind.any_size and not args.fixed_size else []
    difference = check_onnx(files["ONNX float32"], model, shapes)
    show(f"ONNX float32 equals PyTorch within {difference:.1e}")
    if calibration:
        files["ONNX int8"] = out / "onnx/model_int8.onnx"
        batches = pixel_batches(calibration, transform, BATCH if kind.any_batch else 1)
        quantize_int8(files["ONNX float32"], files["ONNX int8"], batches)

    stock = StudentOutputs(model)
    runners = {"PyTorch float32": torch.no_grad()(lambda pixels: stock(pixels)[-1])}
    runners |= {name: OnnxStudent(file, args.threads) for name, file in files.items() if name != "PyTorch float32"}
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    times = median_latencies({name: partial(run, image) for name, run in runners.items()}, args.rounds)
    sizes = {name: file.stat().st_size for name, file in files.items() if file.is_file()}
    sizes.setdefault("PyTorch float32", sum(value.nbytes for value in model.state_dict().values()))
    rows = [
        {"program": name, "megabytes": round(sizes[name] / 1e6, 1), "milliseconds": round(times[name], 2)}
        for name in runners
    ]
    for row in rows if labelled else ():
        value, images = accuracy(runners[row["program"]], labelled, transform)
        row[METRICS[kind.noun]] = round(value, 4)
    conditions = (
        f"{type(model).__name__}, one image of {height}x{width} px on {args.threads} thread(s) of {processor_name()}, "
        f"median of {args.rounds} rounds in turns"
    )
    if labelled:
        conditions += f"; {METRICS[kind.noun]} on {images} images of split {args.accuracy_split}"
    finish(out, rows, conditions)
    return rows


def pixel_batches(source, transform: ImageTransform, batch_size: int):
    """The images of a source in batches, without labels."""
    from ..data import DistillationDataset, ImageLoader

    loader = ImageLoader(DistillationDataset(source, transform, seed=0), batch_size)
    return (batch["pixel_values"] for batch in loader)


def open_labelled(args: argparse.Namespace, classes: dict[int, str] | None) -> tuple[ImageSource, ...]:
    """The queries with a classifier's `classes`; without them the queries and, for kNN, a bank."""
    from ..data import align_classes, bank_and_queries, open_split

    queries = open_split(args, "accuracy_split", "accuracy_images")
    if classes is not None:
        return (align_classes(queries, [classes[number] for number in sorted(classes)], "the model"),)
    bank, queries = bank_and_queries(open_split(args, samples_field="bank_images"), queries)
    return queries, bank


def accuracy(run: Callable, labelled: tuple[ImageSource, ...], transform: ImageTransform) -> tuple[float, int]:
    """Top-1 or, with a bank, kNN accuracy of one program, and of how many images; the bank is of its own features."""
    from ..data import EvaluationDataset, ImageLoader
    from ..evaluation import extract_features, knn_accuracy

    def outputs(source: ImageSource):
        loader = ImageLoader(EvaluationDataset(source, transform), BATCH)
        return extract_features(run, loader, "cpu").each_once()

    queries, *bank = map(outputs, labelled)
    if not bank:
        return (queries.features.argmax(1) == queries.labels).float().mean().item(), len(queries)
    return knn_accuracy(bank[0], queries, k=min(20, len(bank[0])), temperature=0.07), len(queries)


def finish(out: Path, rows: list[dict], conditions: str) -> None:
    """Print the table, and keep it beside the programs and in the card if there is one."""
    from ..hub.folder import write_card
    from ..hub.student_card import CARD_FILE, StudentCard

    show(table(rows))
    show(f"{conditions}\nwritten: {out}")
    (out / "deployment.json").write_text(json.dumps({"rows": rows, "conditions": conditions}, indent=1) + "\n")
    if (out / CARD_FILE).is_file():
        card = StudentCard.load(out / CARD_FILE)
        card.deployment, card.deployment_conditions = rows, conditions
        write_card(out, card)


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "| --- |" + " ---: |" * (len(rows[0]) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


if __name__ == "__main__":
    run_script(main)

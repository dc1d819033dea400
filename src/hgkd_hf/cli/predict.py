"""Predict the labels, masks or boxes of all images of a folder or dataset with a fine-tuned model.

    hgkd predict --model runs/mine-cifar10/model --dataset path/to/images --output_dir runs/predictions
    hgkd predict --model user/detector --dataset path/to/images --threshold 0.3

What the model was fine-tuned for decides what is predicted, by transformers' own pipeline. The output folder gets
predictions.jsonl (a line for each image: row, file, and labels or objects with their scores, or the file of its mask),
masks/ (PNG whose pixels are numbers of classes) and pictures/ (the first images with what was found).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..methods.base.command_settings import DatasetSettings
from ..methods.base.settings import setting
from .errors import run_script
from .output import hush, log_to, show
from .recipe import parse_recipe

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data import ImageSource

PREDICTIONS, MASKS, PICTURES = "predictions.jsonl", "masks", "pictures"

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PredictionArguments(DatasetSettings):
    """Which model, on which images."""

    model: str = setting(help="Folder or Hub id of a fine-tuned model: a run's model/.")
    model_revision: str | None = setting(None, "Branch, tag or commit of the model.")
    max_samples: int | None = setting(None, "At most so many images, drawn at random.", minimum=1)
    threshold: float | None = setting(
        None, "Least score of a box; default: the pipeline's, 0.5.", minimum=0, maximum=1
    )
    top_k: int | None = setting(None, "Labels for each image; default: the pipeline's, 5.", minimum=1)
    max_pictures: int = setting(100, "Draw at most so many pictures; 0: none.", minimum=0)
    batch_size: int = setting(16, "Images at a time.", minimum=1)
    output_dir: Path = setting(Path("runs/predictions"), "Where the results go.")


def main(arguments: list[str] | None = None) -> Path:
    (args,) = parse_recipe((PredictionArguments,), arguments, __doc__, "predict")
    from ..data import open_split  # here and below, after --help is answered
    from ..deployment.predictions import as_json, class_mask, drawn, load_pipeline
    from ..evaluation import best_device

    hush()
    source = open_split(args, labels_field=None)
    given = {"threshold": args.threshold, "top_k": args.top_k}
    given = {name: value for name, value in given.items() if value is not None}
    predictor = load_pipeline(args.model, args.model_revision, best_device())
    task = predictor.task
    # Its own `label2id` may be absent.
    label2id = {label: number for number, label in predictor.model.config.id2label.items()}
    for name, wanted in (("threshold", "object-detection"), ("top_k", "image-classification")):
        if name in given and task != wanted:
            raise ValueError(f"{name} is for {wanted}, but {args.model!r} is for {task}: leave --{name} out.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    log_to(args.output_dir)
    for folder in [PICTURES] * (args.max_pictures > 0) + [MASKS] * (task == "image-segmentation"):
        (args.output_dir / folder).mkdir(exist_ok=True)
    done = 0
    with (args.output_dir / PREDICTIONS).open("w", encoding="utf-8") as lines:
        for batch in batches(source, args.batch_size):
            images = [image for _, _, image in batch]
            for (row, file, image), found in zip(batch, predictor(images, batch_size=len(images), **given)):
                mask = Path(MASKS, f"{row:06}.png") if task == "image-segmentation" else None
                if mask is not None:
                    class_mask(found, label2id, image.size).save(args.output_dir / mask)
                entry = {"row": row, "file": file, **as_json(task, found, mask, image.size)}
                lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
                if done < args.max_pictures:
                    drawn(image, task, found, label2id).save(args.output_dir / PICTURES / f"{row:06}.png")
                done += 1
    unreadable = source.num_rows - done
    show(
        f"{args.model} ({task}) on {args.dataset}: {done:,} images"
        + (f"; {unreadable} could not be read" if unreadable else "")
    )
    show(f"predictions: {args.output_dir / PREDICTIONS}")
    return args.output_dir / PREDICTIONS


def batches(source: ImageSource, size: int) -> Iterator[list[tuple[int, str | None, Image]]]:
    """(row, file, image) of all readable images, at most `size` at a time; those that are not readable are logged."""
    from ..data import CorruptImageError

    batch = []
    for row, values in enumerate(source.dataset.select_columns([source.image_column])):
        try:
            image = source.decode(values, name=f"row {row}")
        except CorruptImageError as error:
            logger.warning("Left out: %s", error)
            continue
        batch.append((row, source.file_name(values), image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    run_script(main)

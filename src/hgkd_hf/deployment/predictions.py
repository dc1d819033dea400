"""What a fine-tuned model says of images, through transformers' own pipelines, as JSON and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from transformers import AutoConfig, Pipeline, pipeline

# The pipeline's task by what the class of a model is named for.
TASKS = {
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
    "ForObjectDetection": "object-detection",
}
NO_CLASS = 255
OPACITY = 128  # of 255, of a mask on its image


def load_pipeline(name_or_path: str, revision: str | None = None, device: Any = "cpu") -> Pipeline:
    """The pipeline of a fine-tuned model's task, from its folder or Hub id: safetensors only, without remote code.

    Args:
        name_or_path: holds the model and its image processor.
        revision: branch, tag or commit of the Hub id.
        device: to compute on.

    Raises:
        ValueError: the model has no head of such a task, or more classes than a mask can hold.
    """
    config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    architecture = (config.architectures or [""])[0]
    task = next((task for head, task in TASKS.items() if head in architecture), None)
    if task is None:
        raise ValueError(
            f"{name_or_path!r} holds a {architecture or 'model without a class'}, which predicts none of "
            f"{', '.join(TASKS.values())}: choose a model of `hgkd finetune` (--model)."
        )
    if task == "image-segmentation" and config.num_labels > NO_CLASS:
        raise ValueError(f"{name_or_path!r} has {config.num_labels} classes, but masks hold {NO_CLASS} (--model).")
    return pipeline(
        task,
        name_or_path,
        revision=revision,
        device=device,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},
    )


def class_mask(segments: Sequence[dict[str, Any]], label2id: dict[str, int], size: tuple[int, int]) -> Image.Image:
    """The segments of an image as one picture whose pixels are numbers of classes, in colours.

    Args:
        segments: of the pipeline, each with `label` and `mask`.
        label2id: of the model.
        size: (width, height) of the image.
    """
    numbers = np.full(size[::-1], NO_CLASS, np.uint8)
    for segment in segments:
        numbers[np.asarray(segment["mask"]) > 0] = label2id[segment["label"]]
    mask = Image.fromarray(numbers)
    mask.putpalette([value for number in range(256) for value in class_colour(number)])
    return mask


def class_colour(number: int) -> tuple[int, int, int]:
    """A colour (red, green, blue) of 0 to 255 for a class; the first dozens can be told apart."""
    hue = number * 0.618034 % 1  # the golden ratio spreads any number of hues evenly
    value = (1.0, 0.7, 0.45)[number // 12 % 3]
    return tuple(int(255 * share) for share in hsv_to_rgb(hue, 1.0, value))


def drawn(image: Image.Image, task: str, predictions: Sequence[dict], label2id: dict[str, int]) -> Image.Image:
    """An image with what was predicted of it: its labels, its mask, or its boxes.

    Args:
        image: RGB.
        task: of the pipeline.
        predictions: of the pipeline, for this image.
        label2id: of the model.
    """
    picture = image.copy()
    pen = ImageDraw.Draw(picture)
    if task == "image-segmentation":
        mask = class_mask(predictions, label2id, image.size)
        shown = Image.fromarray(np.where(np.asarray(mask) == NO_CLASS, 0, OPACITY).astype(np.uint8))
        picture.paste(mask.convert("RGB"), mask=shown)
        return picture
    for line, found in enumerate(predictions):
        text, colour = f"{found['label']} {found['score']:.2f}", class_colour(label2id[found["label"]])
        left, top = 2, 2 + 12 * line
        if task == "object-detection":
            left, top, right, bottom = (found["box"][name] for name in ("xmin", "ymin", "xmax", "ymax"))
            pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=2)
        pen.rectangle(pen.textbbox((left, top), text), fill=(0, 0, 0))
        pen.text((left, top), text, fill=colour if task == "object-detection" else (255, 255, 255))
    return picture


def as_json(task: str, predictions: Sequence[dict], mask: Path | None, size: tuple[int, int]) -> dict[str, Any]:
    """The predictions of an image for JSON.

    Args:
        task: of the pipeline.
        predictions: of the pipeline, for this image.
        mask: where its class mask was written.
        size: (width, height) of the image.

    Returns:
        `labels`: [{label, score}], the best first; `objects`: [{label, score, box}], boxes in pixels; or `mask` and
        the `share` of the image that each class covers.
    """
    if task == "image-segmentation":
        pixels = size[0] * size[1]
        covered = {part["label"]: int((np.asarray(part["mask"]) > 0).sum()) for part in predictions}
        return {"mask": mask.as_posix(), "share": {label: count / pixels for label, count in covered.items()}}
    return {"labels" if task == "image-classification" else "objects": list(predictions)}

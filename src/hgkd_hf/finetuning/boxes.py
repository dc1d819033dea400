"""Boxes and categories of objects: the forms in which rows hold them, the formats of four numbers, and a survey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, List, Value

from ..data.decode import CorruptImageError
from ..data.errors import listed
from .settings import BOX_FORMATS, NORMALISED
from .survey import Survey, share

BOX_KEYS = ("bbox", "bboxes", "boxes", "box")
CATEGORY_KEYS = ("category", "categories", "category_id", "category_ids", "label", "labels", "class", "classes")
FORM = "{'bbox': [...], 'category': [...]} or a list of {'bbox': [...], 'category': ...}"

# A box may reach so far beyond its image, as a share of its side, before it counts as one that does not fit.
MARGIN = 0.01
# Boxes that do not fit: above the first share the format is wrong, above the second if another one fits far better.
MISFIT_SHARE, MISFIT_SHARE_OF_ANOTHER = 0.5, 0.1


def key_of(keys: Iterable[str], choices: Sequence[str]) -> str | None:
    """The first of `choices` that is among the keys."""
    return next((choice for choice in choices if choice in keys), None)


def read_objects(objects: Any, name: str) -> tuple[np.ndarray, list]:
    """A row's objects as stored: boxes (N, 4) float64 and N categories, numbers or names.

    Args:
        objects: None or empty (nothing annotated); a dict of lists, of which one of `BOX_KEYS` and one of
            `CATEGORY_KEYS` count; or a list of dicts, one an object.
        name: what an error calls the row.

    Raises:
        CorruptImageError: they have another form; the sentence names it.
    """
    if objects is None or objects == []:
        return np.zeros((0, 4)), []
    is_list = isinstance(objects, list) and all(isinstance(entry, dict) for entry in objects)
    if not is_list and not isinstance(objects, dict):
        kind = f"a list of {type(objects[0]).__name__}" if isinstance(objects, list) else type(objects).__name__
        raise CorruptImageError(f"{name}: objects must be {FORM}, but are {kind} (--target_column).")
    keys = objects[0] if is_list else objects
    box_key, category_key = key_of(keys, BOX_KEYS), key_of(keys, CATEGORY_KEYS)
    if box_key is None or category_key is None:
        raise CorruptImageError(
            f"{name}: objects must be {FORM}, but have the keys {', '.join(keys)} (--target_column)."
        )
    if is_list:
        boxes, categories = ([entry.get(key) for entry in objects] for key in (box_key, category_key))
    else:
        boxes, categories = ([] if objects[key] is None else objects[key] for key in (box_key, category_key))
    if not isinstance(categories, list):  # one object without lists around it
        boxes, categories = [boxes], [categories]
    if len(boxes) != len(categories):
        raise CorruptImageError(f"{name} has {len(boxes)} boxes, but {len(categories)} categories.")
    return _as_boxes(boxes, name), categories


def _as_boxes(boxes: list, name: str) -> np.ndarray:
    if not boxes:
        return np.zeros((0, 4))
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != (len(boxes), 4) or not np.isfinite(array).all():
        wrong = next((box for box in boxes if not _is_box(box)), boxes[0])
        raise CorruptImageError(f"{name}: a box must be four finite numbers (--box_format), but one is {wrong}.")
    return array


def class_numbers(categories: list, classes: Mapping[str, int], name: str) -> np.ndarray:
    """Categories, names or their positions, to classes (N,) int64.

    Args:
        categories: of a row.
        classes: the class of each name, in the order in which the row counts them.
        name: what an error calls the row.

    Raises:
        CorruptImageError: a category is no class.
    """
    names = list(classes)
    labels = []
    for category in categories:
        if isinstance(category, int | float) and isfinite(category) and 0 <= category < len(names):
            category = names[int(category)] if category == int(category) else category
        if not isinstance(category, str) or category not in classes:
            raise CorruptImageError(
                f"{name}: the category {category!r} is none of the {len(names)} classes {listed(names)}, whose "
                "numbers begin at 0 (--class_names)."
            )
        labels.append(classes[category])
    return np.array(labels, dtype=np.int64)


def category_names(feature: Any, dataset: Dataset, column: str) -> Sequence[str] | None:
    """The names that a dataset gives to its objects' categories, None where these are numbers.

    Args:
        feature: of the column of objects.
        dataset: read through where categories are strings, whose distinct values are the names.
        column: of the objects.
    """
    fields = feature.feature if isinstance(feature, List) else feature
    key = key_of(fields, CATEGORY_KEYS) if isinstance(fields, dict) else None
    if key is None:
        return None
    category = fields[key].feature if isinstance(fields[key], List) else fields[key]
    if isinstance(category, ClassLabel):
        return category.names
    if not isinstance(category, Value) or "string" not in category.dtype:
        return None
    values = dataset.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    while not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        values = values.field(key) if pa.types.is_struct(values.type) else values.flatten()
    return sorted(values.drop_null().unique().to_pylist())


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) and isfinite(x) for x in box)


def to_corners(boxes: np.ndarray, box_format: str, sizes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) of a format of `BOX_FORMATS` to x1, y1, x2, y2 in pixels.

    Args:
        boxes: as stored.
        box_format: x, y, width, height (`xywh`), corners (`xyxy`) or centre and size (`cxcywh`), in pixels or as
            shares of the image's sides (`-normalised`).
        sizes: (width, height) of the image, or of each box's image (N, 2), in pixels.
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    order = box_format.removesuffix(NORMALISED)
    if order == "xywh":
        first, second = first, first + second
    elif order == "cxcywh":
        first, second = first - second / 2, first + second / 2
    scale = sizes if box_format.endswith(NORMALISED) else 1
    return np.concatenate([first * scale, second * scale], 1)


def misfitting(boxes: np.ndarray, box_format: str, sizes: np.ndarray) -> np.ndarray:
    """Which boxes (N,) have less than a pixel of area, or reach beyond their image by more than `MARGIN`.

    Args:
        boxes: as stored, (N, 4).
        box_format: one of `BOX_FORMATS`.
        sizes: (width, height) of the image, or of each box's image (N, 2), in pixels.
    """
    corners = to_corners(boxes, box_format, sizes)
    margin = np.maximum(1, MARGIN * sizes)
    beyond = (corners[:, :2] < -margin).any(1) | (corners[:, 2:] > sizes + margin).any(1)
    return beyond | _small(corners)


def _small(corners: np.ndarray) -> np.ndarray:
    sides = corners[:, 2:] - corners[:, :2]
    return (sides <= 0).any(1) | (sides.prod(1) < 1)


class BoxSurvey(Survey):
    """How well the boxes of a split fit their images in the format that was said, and in the others.

    Args:
        box_format: what was said.
        read: gives a row's boxes as stored, (N, 4), and their classes.
    """

    noun = "boxes"

    def __init__(self, box_format: str, read: Callable[[Any, str], tuple[np.ndarray, np.ndarray]]):
        super().__init__()
        self.box_format, self.read = box_format, read
        self._boxes: list[np.ndarray] = [np.zeros((0, 4))]
        self._sizes: list[np.ndarray] = [np.zeros((0, 2))]  # (width, height) of each box's image
        self._rows: list[int] = []  # of each box
        self._kept = 0

    @property
    def enough(self) -> bool:
        """Whether there was a box that can be trained on."""
        return self._kept > 0

    @property
    def seen(self) -> str:
        """How many rows the boxes are of."""
        return f"all {self.rows:,} rows" if self.complete else f"{self.looked_at:,} of {self.rows:,} rows"

    def add(self, target: Any, size: tuple[int, int], turned: bool, index: int) -> None:
        """Keep the row's boxes."""
        boxes, _ = self.read(target, f"row {index}")
        sizes = np.tile(np.asarray(size, np.float64), (len(boxes), 1))
        misfits = misfitting(boxes, self.box_format, sizes)
        if turned and misfits.any() and not misfitting(boxes, self.box_format, sizes[:, ::-1]).any():
            self.unturned.append(index)
        self._boxes.append(boxes)
        self._sizes.append(sizes)
        self._rows += [index] * len(boxes)
        self._kept += len(boxes) - int(misfits.sum())

    def conclude(self, training: bool) -> None:
        """Warn of boxes that do not fit their images, which are clipped or left out.

        Raises:
            ValueError: there is no box; or most do not fit; or many do not and would in another format.
        """
        boxes, sizes = np.concatenate(self._boxes), np.concatenate(self._sizes)
        if len(boxes) == 0:
            raise ValueError(f"{self.where}: no object is annotated in {self.seen} (--target_column, --split).")
        misfits = misfitting(boxes, self.box_format, sizes)
        if not misfits.any():
            return
        counts = {kind: int(misfitting(boxes, kind, sizes).sum()) for kind in BOX_FORMATS}
        fitting = [kind for kind, count in counts.items() if count <= misfits.sum() / 10]
        index, small = int(misfits.argmax()), int(_small(to_corners(boxes, self.box_format, sizes)).sum())
        width, height = sizes[index].astype(int)
        message = (
            f"{misfits.sum():,} of {len(boxes):,} boxes ({share(misfits.sum(), len(boxes))}) of {self.seen} do not "
            f"fit their images as --box_format {self.box_format}: {small:,} smaller than a pixel or negative, "
            f"{misfits.sum() - small:,} reaching beyond the image. The first is {np.round(boxes[index], 4).tolist()} "
            f"of row {self._rows[index]}, whose image has {width}x{height} pixels."
        )
        if fitting:
            message += f" As --box_format {' or '.join(fitting)} they would fit."
        if misfits.mean() > (MISFIT_SHARE_OF_ANOTHER if fitting else MISFIT_SHARE) or not self._kept:
            raise ValueError(f"{self.where}: {message}")
        self.warn(f"{message} They are clipped to it, and left out where less than a pixel remains.")

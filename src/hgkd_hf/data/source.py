"""An opened split of an image dataset, and what a run records about it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets import Dataset, IterableDataset
from PIL import Image

from hgkd_hf.data.access import NOWHERE, ImageAccess
from hgkd_hf.data.decode import decode_image
from hgkd_hf.data.errors import STANDARD_FLAGS, Flags
from hgkd_hf.data.fingerprint import rows_fingerprint


@dataclass(frozen=True)
class ImageSource:
    """The rows of a split, with undecoded images in one column and, perhaps, labels in another.

    Attributes:
        dataset: the rows; columns of images are cast to `Image(decode=False)`, i.e. yield `{"bytes", "path"}`.
        image_column: name of the column that holds the images.
        label_column: name of the column that holds labels, None if there is none.
        class_names: the classes by number, None where the dataset does not name them.
        name: the Hub id or path, as the user wrote it.
        revision: the revision that the user asked for (Hub ids only).
        split: name of the split.
        num_rows: number of rows; None when streaming.
        access: which files and URLs rows may name.
        classes: the class of each label as it is stored; None: labels are the classes' numbers.
        flags: what errors call the arguments that opened it.
    """

    dataset: Dataset | IterableDataset
    image_column: str
    label_column: str | None
    class_names: tuple[str, ...] | None
    name: str
    revision: str | None
    split: str
    num_rows: int | None
    access: ImageAccess = NOWHERE
    classes: dict[object, int] | None = None
    flags: Flags = STANDARD_FLAGS

    @cached_property
    def fingerprint(self) -> str:
        """A cheap hash of the rows' names, sizes, labels and some of their bytes; see `rows_fingerprint`."""
        return rows_fingerprint(self.dataset, self.image_column, self.label_column, self.access)

    @cached_property
    def image_fingerprint(self) -> str:
        """The same of the images alone, whatever their labels are."""
        return rows_fingerprint(self.dataset, self.image_column, None, self.access)

    def decode(self, row: dict, *, min_side: int | None = None, name: str | None = None) -> Image.Image:
        """The image of a row as RGB; see `decode_image`.

        Raises:
            CorruptImageError: it cannot be decoded, or lies where rows may not point.
        """
        return decode_image(row[self.image_column], min_side=min_side, name=name, access=self.access)

    def file_name(self, row: dict) -> str | None:
        """The path of a row's image, below the dataset's folder where it lies there; None if the row names none."""
        path, folder = (row[self.image_column] or {}).get("path"), self.access.folder
        if path and folder and Path(path).is_relative_to(folder):
            return Path(os.path.relpath(path, folder)).as_posix()
        return path

    def label(self, row: dict) -> int | None:
        """The class of a row, None if it has no label, or one of no class."""
        return self.to_class(row[self.label_column])

    def to_class(self, label: object) -> int | float | None:
        """The class of a label as it is stored; of a number that is not whole, that number."""
        if label is None or label != label:  # tables of pandas hold NaN where a number is missing
            return None
        if self.classes is not None:
            return self.classes.get(label)
        return label if label in (math.inf, -math.inf) or int(label) != label else int(label)

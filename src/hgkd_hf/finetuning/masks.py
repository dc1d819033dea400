"""Masks of class numbers: how they are stored, which pixel value is which class, and what a split of them holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.access import ANYWHERE, ImageAccess
from ..data.decode import CorruptImageError, open_image
from ..data.errors import listed, reason
from .survey import Survey, share

IGNORED = -100  # cross-entropy's own default: no class has it, however many there are
UNKNOWN = -1
# Above it a split's masks teach little, and are more often wrong than meant.
IGNORED_SHARE = 0.5
_TABLE_SIZE = 2**16
# Pillow stretches grey PNGs of fewer bits to 0 ... 255.
_STRETCHED = {"L;2": 85, "L;4": 17}


def read_pixel_values(value: Any, name: str, access: ImageAccess = ANYWHERE) -> np.ndarray:
    """The values of a mask's pixels, (H, W) of an integer type: never scaled, wrapped or clipped.

    Args:
        value: `{"bytes", "path"}` of an image file, its bytes, its path, or nested lists. A palette's indices are the
            values; several bands count as one where they are equal.
        name: what an error calls the row.
        access: where files that rows name may lie.

    Raises:
        CorruptImageError: there is no mask, it cannot be decoded, or it is no map of whole numbers.
    """
    if value is None:
        raise CorruptImageError(f"{name} has no mask.")
    if isinstance(value, str):
        value = {"bytes": None, "path": value}
    if isinstance(value, dict | bytes):
        values = _read_file(value, name, access)
    else:
        try:
            values = np.asarray(value)
        except ValueError as error:  # rows of unequal lengths
            raise CorruptImageError(f"{name}: the mask's rows differ in length.") from error
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "buif":
        raise CorruptImageError(
            f"{name}: the mask has shape {values.shape} of {values.dtype}, but class numbers of (height, width) are "
            "needed."
        )
    if values.dtype.kind == "f":
        whole = np.where(np.isfinite(values), values, 0.5)
        if (whole != np.floor(whole)).any():
            wrong = values[whole != np.floor(whole)][0]
            raise CorruptImageError(f"{name}: the mask holds {wrong:g}, but classes are whole numbers.")
        values = values.astype(np.int64)
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


def _read_file(value: dict | bytes, name: str, access: ImageAccess) -> np.ndarray:
    file = open_image(value, name=f"{name}: the mask", access=access)
    if file.format in ("JPEG", "MPO"):
        raise CorruptImageError(f"{name}: the mask is a JPEG, which changes class numbers: store masks as PNG.")
    stretch = _STRETCHED.get(file.tile[0].args) if file.format == "PNG" and file.tile else None
    try:
        values = np.array(file)
    except Exception as error:  # broken files make Pillow's readers fail in every way
        raise CorruptImageError(f"{name}: the mask cannot be decoded: {reason(error)}.") from error
    if values.ndim == 3:
        colours = values[..., : 1 if file.mode in ("LA", "PA") else 3]
        if (colours != colours[..., :1]).any():
            raise CorruptImageError(
                f"{name}: the mask has mode {file.mode}, a picture of colours such as "
                f"{tuple(_first_colour(colours))}, but a single band of class numbers is needed."
            )
        values = colours[..., 0]
    return values if stretch is None else values // stretch


def _first_colour(pixels: np.ndarray) -> list[int]:
    return pixels[(pixels != pixels[..., :1]).any(2)][0].tolist()


class ClassValues:
    """Which pixel value is which class.

    Args:
        names: of the classes.
        mask_values: the pixel values of the classes in their order; None: 0, 1, 2, ...
        ignore_index: the value of pixels that do not count. Where `mask_values` lists it, it is a class.

    Raises:
        ValueError: `mask_values` has another length than `names`, or a value twice.
    """

    def __init__(self, names: Sequence[str], mask_values: Sequence[int] | None, ignore_index: int):
        self.names = tuple(names)
        self.values = tuple(range(len(names)) if mask_values is None else mask_values)
        if len(self.values) != len(self.names) or len(set(self.values)) != len(self.values):
            raise ValueError(
                f"mask_values are {listed(self.values)}, but {len(self.names)} different values are needed, one for "
                f"each class of {listed(self.names)} (--mask_values)."
            )
        self._classes = {value: label for label, value in enumerate(self.values)}
        if mask_values is None or ignore_index not in self._classes:
            self._classes[ignore_index] = IGNORED
        self._table = np.full(_TABLE_SIZE, UNKNOWN, np.int32)
        for value, label in self._classes.items():
            if 0 <= value < _TABLE_SIZE:
                self._table[value] = label

    def class_of(self, value: int) -> int:
        """The class of a pixel value, `IGNORED`, or `UNKNOWN`."""
        return self._classes.get(value, UNKNOWN)

    def to_classes(self, pixels: np.ndarray) -> np.ndarray:
        """Pixel values (H, W) to classes int32 (H, W), `IGNORED` and `UNKNOWN` among them."""
        if pixels.dtype in (np.uint8, np.uint16):
            return self._table[pixels]
        values, inverse = np.unique(pixels, return_inverse=True)
        classes = np.array([self.class_of(value) for value in values.tolist()], np.int32)
        return classes[inverse].reshape(pixels.shape)


def check_size(pixels: np.ndarray, width: int, height: int, name: str) -> None:
    """Compare a mask with the size of its upright image.

    Raises:
        CorruptImageError: they differ.
    """
    if pixels.shape == (height, width):
        return
    turned = ""
    if pixels.shape == (width, height):
        turned = " (is the image turned by its EXIF orientation, and the mask is not?)"
    raise CorruptImageError(
        f"{name}: the mask has {pixels.shape[1]}x{pixels.shape[0]} pixels, the image {width}x{height}: "
        f"they must agree{turned}."
    )


class MaskSurvey(Survey):
    """Which values the masks of a split hold, in how many pixels and masks."""

    noun = "masks"

    def __init__(self, classes: ClassValues, access: ImageAccess):
        super().__init__()
        self.classes, self.access = classes, access
        self.pixels: Counter[int] = Counter()  # by value
        self.strange = 0  # masks with a value of no class

    def add(self, target: Any, size: tuple[int, int], turned: bool, index: int) -> None:
        """Count the values of a row's mask."""
        name = f"row {index}"
        pixels = read_pixel_values(target, name, self.access)
        if turned and pixels.shape == size:
            self.unturned.append(index)
        check_size(pixels, *size, name)
        if pixels.dtype in (np.uint8, np.uint16):
            counts = np.bincount(pixels.ravel())
            values = counts.nonzero()[0]
            counts = counts[values]
        else:
            values, counts = np.unique(pixels, return_counts=True)
        values = values.tolist()
        self.pixels.update(dict(zip(values, counts.tolist())))
        self.strange += any(self.classes.class_of(value) == UNKNOWN for value in values)

    def conclude(self, training: bool) -> None:
        """Warn of classes that never occur and of many ignored pixels.

        Raises:
            ValueError: a value is of no class, no pixel counts, or in training only one class occurs.
        """
        total, names = sum(self.pixels.values()), self.classes.names
        labels = {value: self.classes.class_of(value) for value in self.pixels}
        unknown = sorted(value for value, label in labels.items() if label == UNKNOWN)
        if unknown:
            pixels = share(sum(self.pixels[value] for value in unknown), total)
            raise ValueError(
                f"{self.where}: {self.strange} of {self.seen} hold values of no class ({pixels} of the pixels): "
                f"{listed(unknown)}; the {len(names)} classes are {listed(self.classes.values)}. Name more "
                f"--class_names, set --ignore_index {unknown[0]}, or say with --mask_values which value is which "
                f"class{self._suggestion()}."
            )
        present = {label for label in labels.values() if label != IGNORED}
        ignored = sum(self.pixels[value] for value, label in labels.items() if label == IGNORED)
        absent = [name for label, name in enumerate(names) if label not in present]
        counts = f"{share(ignored, total)} of the pixels of {self.seen} are ignored"
        if not present or (training and len(present) == 1 < len(names) and (ignored or self.complete)):
            only = f"only class {names[min(present)]!r} occurs" if present else "no class occurs"
            raise ValueError(
                f"{self.where}: {only}, {listed(absent)} never, and {counts}; the values are "
                f"{listed(sorted(self.pixels))}. Correct --ignore_index, or say with --mask_values which value is "
                f"which class{self._suggestion()}."
            )
        if absent:
            self.warn(f"{len(absent)} of {len(names)} classes never occur in {self.seen}: {listed(absent)}.")
        if ignored > IGNORED_SHARE * total:
            self.warn(f"{counts} (--ignore_index).")

    def _suggestion(self) -> str:
        """The values found, where they are as many as the classes."""
        values = sorted(self.pixels)
        if len(values) != len(self.classes.names):
            return ""
        return f", such as --mask_values {' '.join(map(str, values))} for {', '.join(self.classes.names)}"

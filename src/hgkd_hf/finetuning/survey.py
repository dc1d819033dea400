"""A look at a split's annotations before training: what is wrong with many of them ends the run at once."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from ..data import ImageSource
from ..data.decode import CorruptImageError, exif_orientation, open_image

logger = logging.getLogger(__name__)

SURVEYED_ROWS = 256
# More unusable annotations than that among those looked at are a mistake of the data or of a flag. Fewer are skipped
# in training, as unreadable images are, up to --max_skipped_share.
UNUSABLE_SHARE = 0.5


class Survey(ABC):
    """Counts over the annotations of at most `SURVEYED_ROWS` rows of a split, spread evenly over it.

    Attributes:
        noun: what is counted, in the plural.
        where: what messages call the split.
        rows, looked_at: of the split, and how many of them were looked at.
        turned: images looked at whose EXIF orientation turns or mirrors them.
        unturned: rows whose annotations fit the image only as it is stored, before EXIF swaps its sides.
    """

    noun: ClassVar[str]

    def __init__(self):
        self.where, self.rows, self.looked_at, self.turned = "", 0, 0, 0
        self.usable, self.unusable = 0, []
        self.unturned: list[int] = []

    @abstractmethod
    def add(self, target: Any, size: tuple[int, int], turned: bool, index: int) -> None:
        """Take in a row's annotation.

        Args:
            target: as the row holds it.
            size: (width, height) of the upright image in pixels.
            turned: whether that is (height, width) of the image as it is stored.
            index: of the row.

        Raises:
            CorruptImageError: the annotation cannot be used.
        """

    @abstractmethod
    def conclude(self, training: bool) -> None:
        """Warn, or raise a ValueError, of what the counts show."""

    @property
    def enough(self) -> bool:
        """Whether `SURVEYED_ROWS` rows have shown something; else more are looked at."""
        return True

    @property
    def complete(self) -> bool:
        """Whether all rows were looked at."""
        return self.looked_at == self.rows

    @property
    def seen(self) -> str:
        """How many annotations the counts are of."""
        return (
            f"all {self.rows:,} {self.noun}" if self.complete else f"{self.looked_at:,} of {self.rows:,} {self.noun}"
        )

    def warn(self, message: str) -> None:
        """Log a warning about the split."""
        logger.warning("%s: %s", self.where, message)

    def run(self, rows: Sequence[dict], source: ImageSource, column: str, training: bool) -> None:
        """Look at rows and conclude.

        Args:
            rows: of the split, each with its undecoded image and its annotation.
            source: the split.
            column: of the annotations.
            training: whether the split is trained on.

        Raises:
            ValueError: a model could not learn from these annotations, or not be measured by them.
        """
        self.where, self.rows = f"split {source.split!r} of {source.name!r}", len(rows)
        for index in _spread(len(rows)):
            if self.looked_at >= SURVEYED_ROWS and self.enough:
                break
            self.looked_at += 1
            self._look(rows[index], source, column, index)
        if self.unturned:
            raise ValueError(
                f"{self.where}: the {self.noun} of {len(self.unturned)} rows, the first is row {self.unturned[0]}, "
                "fit their images only as these are stored, before EXIF turns them: store the images upright, or turn "
                f"their {self.noun} too."
            )
        if len(self.unusable) > UNUSABLE_SHARE * self.looked_at:
            raise ValueError(
                f"{self.where}: {len(self.unusable)} of {self.seen} cannot be used. The first: {self.unusable[0]}"
            )
        if self.unusable:
            self.warn(f"{len(self.unusable)} of {self.seen} cannot be used and are skipped: {self.unusable[0]}")
        if self.turned:
            self.warn(
                f"{self.turned:,} of {self.looked_at:,} images looked at are turned upright by their EXIF "
                f"orientation: their {self.noun} must be those of the upright image."
            )
        if self.usable:
            self.conclude(training)

    def _look(self, row: dict, source: ImageSource, column: str, index: int) -> None:
        try:
            image = open_image(row[source.image_column], access=source.access)
        except CorruptImageError:
            return  # skipped and counted where images are read
        orientation = exif_orientation(image)
        self.turned += orientation != 1
        turned = orientation in (5, 6, 7, 8)
        size = image.size[::-1] if turned else image.size
        try:
            self.add(row[column], size, turned, index)
        except CorruptImageError as error:
            self.unusable.append(str(error))
        else:
            self.usable += 1


def _spread(count: int) -> Iterable[int]:
    """All of 0 ... count - 1, the first `SURVEYED_ROWS` of them evenly spread."""
    first = sorted({index * count // SURVEYED_ROWS for index in range(SURVEYED_ROWS)})
    yield from first
    yield from sorted(set(range(count)) - set(first))


def share(part: int, total: int) -> str:
    """A share in per cent."""
    return f"{part / max(total, 1):.1%}"

"""The two sides of a teacher's cache: the views that a teacher is shown, and the samples that bring what it saw."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from hgkd_hf.data.augment import ImageTransform, sample_generator
from hgkd_hf.data.dataset import DistillationDataset
from hgkd_hf.data.load import ImageSource
from hgkd_hf.teachers.cache import TeacherCache


class TeacherViews(DistillationDataset):
    """What a teacher is shown, by (view, row): the view of a row in that epoch of live training with the same seed.

    A sample is a dict of `pixel_values` (3, H, W) uint8; `sample_index`, the row; `box` (4,) int32, the crop (left,
    top, right, bottom) in pixels of the decoded image; and `flip`, whether it was mirrored.
    """

    def __init__(self, source: ImageSource, transform: ImageTransform, *, seed: int) -> None:
        super().__init__(source, transform, seed=seed)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        """See the class; raises as `DistillationDataset`."""
        view, row = key
        return self._read(row, row, view)

    def _views(self, image: Image.Image, index: int, key: int, epoch: int, purpose: str) -> dict[str, Tensor]:
        generator = sample_generator(self.seed, epoch, key, purpose)
        box, flip = self.transform.random_view(image.width, image.height, generator)
        pixel_values = self.transform.render(image, box, flip, generator)
        return {"pixel_values": pixel_values, "box": torch.tensor(box, dtype=torch.int32), "flip": torch.tensor(flip)}


class CachedTeacherDataset(DistillationDataset):
    """The samples of `DistillationDataset` with `teacher_features` (C, h, w) float32, read from a cache.

    Epoch e is view e modulo the cache's number of views, drawn by the cache's seed: where the run has the same seed,
    the first epochs are those of live training, bit for bit. Masks are drawn by the run's seed and epoch.

    Args:
        source: rows that the cache was written from, not streaming.
        transform: that of the cache, normalised for the student.
        cache: what the teacher saw.
        settings: as in `DistillationDataset`, without mixing of images.

    Raises:
        ValueError: images are to be mixed, or are not as many as the teacher saw.
    """

    def __init__(self, source: ImageSource, transform: ImageTransform, *, cache: TeacherCache, **settings) -> None:
        super().__init__(source, transform, **settings)
        if self.mixing is not None and self.mixing.needs_partner:
            raise ValueError(
                "mixup and cutmix show the student images that the cached teacher has not seen: set --mixup and "
                "--cutmix to 0, or leave --teacher_cache out."
            )
        if len(self.rows) != cache.info.rows:
            raise ValueError(
                f"the cached teacher saw {cache.info.rows:,} images, but {len(self.rows):,} of {source.name!r} can be "
                "used, those with a label: leave the others out, and write the cache again with `hgkd teach`."
            )
        self.cache = cache

    def _views(self, image: Image.Image, index: int, key: int, epoch: int, purpose: str) -> dict[str, Tensor]:
        view = epoch % self.cache.info.views
        cached = self.cache.read(key, view)
        generator = sample_generator(self.cache.info.seed, view, key, purpose)
        box, flip = self.transform.random_view(image.width, image.height, generator)
        if (index, box, flip) != (cached.row, cached.box, cached.flip):
            raise ValueError(
                f"view {view} of row {key} is crop {box} of row {index}, flipped {flip}, but the cached teacher saw "
                f"crop {cached.box} of row {cached.row}, flipped {cached.flip}: the images of {self.source.name!r} "
                "have changed since; write the cache again with `hgkd teach`."
            )
        pixel_values = self.transform.render(image, box, flip, generator)
        return {"pixel_values": pixel_values, "teacher_features": cached.features}

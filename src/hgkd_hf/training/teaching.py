"""What `hgkd teach` is told, and what it makes of it: a teacher, images, their views, and the plan of a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ..methods.base.command_settings import TaughtImages
from ..methods.base.settings import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data import ImageSource, ImageTransform
    from ..data.cached import TeacherViews
    from ..teachers import PatchTeacher
    from ..teachers.cache import CacheInfo

# Of an `ImageTransform`, what a student's own settings decide.
_NOT_OF_THE_VIEW = ("train", "image_mean", "image_std", "crop_fraction")


@dataclass
class TeachSettings(TaughtImages):
    """Which teacher sees which views of which images, and how what it sees is kept."""

    teacher: list[str] | str = setting(
        help="A vision transformer: a name (`hgkd teachers` lists them), Hub id or folder.", several=True
    )
    teacher_image_size: int | None = setting(
        None, "Pixels; default: what fits a student with cells of 32 pixels.", minimum=1
    )
    color_jitter: float = setting(0.0, "Of brightness, contrast and saturation.", minimum=0, maximum=1)
    views: int = setting(1, "Views of each image: view k is that of epoch k of a run with the same seed.", minimum=1)
    seed: int = setting(42, "Of the views.")

    output_dir: str = setting("caches/teacher", "The cache's folder.")
    storage: Literal["float32", "float16", "int8"] = setting(
        "int8", "Type of the stored values; int8 has a scale for each channel of an image."
    )
    pooled_grid: int | None = setting(
        None, "Side of the grid that maps are averaged to; default: keep all.", minimum=1
    )
    images_per_shard: int = setting(4096, "Images of a view in a file.", minimum=1)

    batch_size: int = setting(64, "Images that the teacher sees at once.", minimum=1)
    num_workers: int = setting(0, "Processes that decode images, beside each that runs the teacher.", minimum=0)
    dry_run: bool = setting(False, "Check everything, print bytes and time, and stop.")

    def check(self) -> None:
        """Also refuse several teachers."""
        super().check()
        if isinstance(self.teacher, list):
            raise ValueError(
                f"a cache holds what one teacher saw, but --teacher names {len(self.teacher)}: name one, or let them "
                "teach live (`hgkd distill`)."
            )

    @cached_property
    def source(self) -> ImageSource:
        """The images."""
        from ..data import open_split

        return open_split(self, labels_field=None)

    @cached_property
    def transform(self) -> ImageTransform:
        """What cuts the views; normalised as for a student, so that the teacher sees what it sees in live training."""
        from ..data import ImageTransform

        return ImageTransform(
            self.image_size,
            train=True,
            crop_scale=tuple(self.crop_scale),
            flip_probability=self.flip_probability,
            color_jitter=self.color_jitter,
        )

    def teacher_views(self) -> TeacherViews:
        """The views of all images."""
        from ..data.cached import TeacherViews

        return TeacherViews(self.source, self.transform, seed=self.seed)

    def load_teacher(self) -> PatchTeacher:
        """The teacher; by default at the image size that a student with cells of 32 pixels asks for."""
        import torch

        from ..methods.hgkd.modeling import aligned_teacher_image_size
        from ..students.sparse_unet import SparseUNetConfig
        from ..teachers import PatchTeacher

        size, hub = self.teacher_image_size, {"revision": self.teacher_revision}
        if size is None:
            patch, student = PatchTeacher.patch_size_of(self.teacher, **hub), SparseUNetConfig()
            if self.image_size % student.cell_size:
                size = max(1, self.image_size // patch) * patch
            else:
                size = aligned_teacher_image_size(patch, self.image_size, student)
        dtype = getattr(torch, self.teacher_dtype)
        return PatchTeacher.from_pretrained(
            self.teacher, layers=self.teacher_layers, image_size=size, dtype=dtype, **hub
        )

    def cache_info(self, teacher: PatchTeacher) -> CacheInfo:
        """What the cache is to hold.

        Raises:
            ValueError: the teacher's grid is not a multiple of `pooled_grid`.
        """
        from ..checkpoints.identity import weights_digest
        from ..teachers.cache import CacheInfo
        from ..teachers.cache.info import public_name

        grid = teacher.grid if self.pooled_grid is None else (self.pooled_grid, self.pooled_grid)
        if any(side % pooled for side, pooled in zip(teacher.grid, grid)):
            raise ValueError(
                f"the teacher's grid of {teacher.grid} tokens is not a multiple of pooled_grid {self.pooled_grid}: "
                "choose a divisor (--pooled_grid), or another --teacher_image_size."
            )
        view = {name: value for name, value in asdict(self.transform).items() if name not in _NOT_OF_THE_VIEW}
        return CacheInfo(
            teacher=public_name(self.teacher),
            teacher_revision=teacher.revision,
            teacher_weights=weights_digest(teacher),
            teacher_dtype=self.teacher_dtype,
            teacher_layers=teacher.layers,
            teacher_image_size=teacher.image_size,
            hidden_sizes=teacher.hidden_sizes,
            grid=grid,
            dataset=public_name(self.dataset),
            dataset_revision=self.dataset_revision,
            dataset_config=self.dataset_config,
            split=self.split,
            max_samples=self.max_samples,
            rows=self.source.num_rows,
            fingerprint=self.source.image_fingerprint,
            transform=view,
            seed=self.seed,
            views=self.views,
            storage=self.storage,
            images_per_shard=self.images_per_shard,
        )

    def eyes(self, teacher: PatchTeacher, info: CacheInfo, device: torch.device) -> Callable[[Tensor], Tensor]:
        """`pixel_values` (B, 3, H, W) uint8 to what the teacher sees: (B, C, *info.grid) float32, layers as one."""
        import torch
        import torch.nn.functional as F

        from ..teachers.showing import show

        def see(pixel_values: Tensor) -> Tensor:
            pixel_values = self.transform.normalize(pixel_values.to(device))  # as live training does
            output = show(teacher, pixel_values, self.transform.image_mean, self.transform.image_std)
            maps = torch.cat(output.feature_maps, 1)
            return maps if maps.shape[-2:] == info.grid else F.adaptive_avg_pool2d(maps, info.grid)

        return see

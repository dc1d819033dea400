"""A teacher that is not there: what it saw comes with the samples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..patch_teacher import PatchTeacherOutput
from .info import CacheInfo


class CachedTeacher(nn.Module):
    """Stands for the `PatchTeacher` that wrote a cache, without weights: it tells what it gave, and gives it again.

    Args:
        info: of the cache.

    Attributes:
        name_or_path, revision, layers, image_size, hidden_sizes, teacher_input: as of the teacher.
        grid: (rows, columns) of the stored maps, which may be fewer than the teacher's tokens.
    """

    def __init__(self, info: CacheInfo) -> None:
        super().__init__()
        self.name_or_path, self.revision, self.teacher_input = info.teacher, info.teacher_revision, "full"
        self.layers, self.image_size = info.teacher_layers, info.teacher_image_size
        self.hidden_sizes, self.grid = info.hidden_sizes, info.grid

    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> PatchTeacherOutput:
        """It sees nothing.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"the teacher {self.name_or_path!r} is cached and sees no images: pass the teacher_features of a "
            "CachedTeacherDataset's samples, or attach the teacher itself."
        )


def recall(teacher_features: Tensor, hidden_sizes: Sequence[int]) -> PatchTeacherOutput:
    """What a teacher saw, from the samples of a cache.

    Args:
        teacher_features: (B, C, h, w), the maps of all layers one after the other.
        hidden_sizes: channels of each.
    """
    maps = teacher_features.float().split(list(hidden_sizes), dim=1)
    return PatchTeacherOutput(maps, maps[-1].mean((2, 3)))

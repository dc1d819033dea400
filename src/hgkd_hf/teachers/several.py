"""Several frozen teachers of the same images, which stand as one where a method asks for its teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .cnn_teacher import CNNTeacher
from .frozen import FrozenTeacher
from .patch_teacher import PatchTeacher, PatchTeacherOutput


class SeveralTeachers(nn.Module, ABC):
    """Teachers that look at the same images, each at its own size and with its own normalisation.

    Args:
        teachers: in the order in which what they see is given.

    Attributes:
        name_or_path, revision, image_size: of each teacher.
        layers: at which they are read, each once: a ViT's default is not a CNN's.
        teacher_input: which all have in common.
        hidden_sizes: channels of the maps of the first teacher, then of the second, and so on.
    """

    def __init__(self, teachers: Sequence[FrozenTeacher]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.name_or_path = [teacher.name_or_path for teacher in teachers]
        self.revision = [teacher.revision for teacher in teachers]
        self.image_size = [teacher.image_size for teacher in teachers]
        self.layers = tuple(dict.fromkeys(layer for teacher in teachers for layer in teacher.layers))
        self.teacher_input = teachers[0].teacher_input
        self.hidden_sizes = tuple(size for teacher in teachers for size in teacher.hidden_sizes)

    def num_parameters(self) -> int:
        """Number of weights kept, of all teachers."""
        return sum(teacher.num_parameters() for teacher in self.teachers)

    @abstractmethod
    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> ModelOutput:
        """What they see in images (B, 3, H, W), RGB in [0, 1]; see `PatchTeacher.forward`."""


class SeveralMapTeachers(SeveralTeachers):
    """Vision transformers or CNNs, whose maps are targets side by side, as those of AM-RADIO (arXiv:2312.06709).

    All maps have the grid of the teacher with the fewest tokens; those of others are averaged to it.

    Attributes:
        grid: (rows, columns) of all maps.

    Raises:
        ValueError: a teacher's grid is not a multiple of that one.
    """

    def __init__(self, teachers: Sequence[PatchTeacher | CNNTeacher]) -> None:
        super().__init__(teachers)
        coarsest = min(teachers, key=lambda teacher: teacher.grid)
        self.grid = coarsest.grid
        for teacher in teachers:
            if any(side % ours for side, ours in zip(teacher.grid, self.grid)):
                raise ValueError(
                    f"the {teacher.grid} tokens of the teacher {teacher.name_or_path!r} are not a multiple of the "
                    f"{self.grid} of {coarsest.name_or_path!r}: choose teachers or sizes that go together (--teacher, "
                    "--teacher_image_size; without it each has the size that fits the student)."
                )

    @torch.no_grad()
    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> PatchTeacherOutput:
        """Their maps (B, D, *grid) float32; what is pooled is left out."""
        outputs = (teacher(images, bool_masked_pos) for teacher in self.teachers)
        return PatchTeacherOutput(
            tuple(F.adaptive_avg_pool2d(feature_map, self.grid) for o in outputs for feature_map in o.feature_maps)
        )


@dataclass
class SeveralClassifiersOutput(ModelOutput):
    """What classifiers say of a batch of images: `logits`, (B, num_labels) float32 of each."""

    logits: tuple[Tensor, ...] | None = None


class SeveralClassifiers(SeveralTeachers):
    """Classifiers that say what they see, each by itself."""

    @torch.no_grad()
    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> SeveralClassifiersOutput:
        """Classify images (B, 3, H, W), RGB in [0, 1]; no mask is heeded."""
        return SeveralClassifiersOutput(tuple(teacher(images).logits for teacher in self.teachers))

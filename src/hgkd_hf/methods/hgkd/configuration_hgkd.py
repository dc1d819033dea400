"""Configuration of H-GKD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

from transformers import PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...objectives.feature_regression import FeatureLoss
from ...sparse.masking import cell_grid, num_visible_cells
from ...students.sparse_unet import SparseUNetConfig
from ...teachers import PatchTeacher


class HGKDConfig(PreTrainedConfig):
    """Configuration of `HGKDForPreTraining`.

    H-GKD (arXiv 2309.09571) is known to us by its abstract; every choice that it leaves open is a field here.
    Without a teacher (`feature_weight=0, pixel_weight=1, decoder="full"`) this is SparK (arXiv 2301.03580).

    Args:
        student_config: a `SparseUNetConfig` or its dict. Its `decoder_stride` follows from `decoder`.
        teacher_name_or_path, teacher_revision: where the teacher's weights came from.
        teacher_layers: which of its feature maps are targets (see `PatchTeacher`); one head each.
        teacher_hidden_sizes: channels of those maps; empty = no teacher.
        teacher_grid: (rows, columns) of its patch tokens, a multiple of the grid of mask cells.
        teacher_image_size: (height, width) in pixels at which it sees the student's crop.
        teacher_input: `"full"`: it sees the whole crop; `"masked"`: only the visible cells, and infers the others.
        image_size: of the student's crops in pixels, side or (height, width).
        image_mean, image_std: normalisation of the student's `pixel_values`.
        mask_ratio: share of the cells that are hidden.
        decoder: `"truncated"` stops at the teacher's grid, `"full"` goes up to the image.
        loss, smooth_l1_beta: distance between predicted and LayerNorm-normalised target features.
        positions: `"masked"`: only hidden positions are predicted; `"all"`: every one.
        feature_weight, pixel_weight: weights of the two terms; a term of weight 0 is not computed. The pixel term
            needs the full decoder.

    Raises:
        ValueError: a value is out of range, or two do not go together; the message names them.
    """

    model_type = "hgkd"
    sub_configs: ClassVar[dict[str, type]] = {"student_config": SparseUNetConfig}

    student_config: dict[str, Any] | PreTrainedConfig | None = None
    teacher_name_or_path: str | None = None
    teacher_revision: str | None = None
    teacher_layers: list[int] | tuple[int, ...] = ()
    teacher_hidden_sizes: list[int] | tuple[int, ...] = ()
    teacher_grid: list[int] | tuple[int, ...] | None = None
    teacher_image_size: list[int] | tuple[int, ...] | None = None
    teacher_input: str = "full"
    image_size: int | list[int] | tuple[int, ...] = 224
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)
    mask_ratio: float = 0.6
    decoder: str = "truncated"
    loss: str = "smooth-l1"
    smooth_l1_beta: float = 2.0
    positions: str = "all"
    feature_weight: float = 1.0
    pixel_weight: float = 0.0

    def __post_init__(self, **kwargs):
        if not isinstance(self.student_config, PreTrainedConfig):
            self.student_config = SparseUNetConfig(**(self.student_config or {}))
        super().__post_init__(**kwargs)
        for name, choices in (
            ("teacher_input", ("full", "masked")),
            ("decoder", ("truncated", "full")),
            ("loss", get_args(FeatureLoss)),
            ("positions", ("masked", "all")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        num_visible_cells(self.cell_grid, self.mask_ratio)
        if min(self.feature_weight, self.pixel_weight) < 0 or not self.feature_weight + self.pixel_weight:
            raise ValueError(
                f"feature_weight {self.feature_weight} and pixel_weight {self.pixel_weight} must not be negative, "
                f"and one must be above 0."
            )
        if self.pixel_weight and self.decoder != "full":
            raise ValueError(f"pixel_weight {self.pixel_weight} needs the whole decoder: set decoder to 'full'.")
        if not self.mask_ratio and (self.pixel_weight or self.positions == "masked"):
            raise ValueError("mask_ratio 0 hides nothing to predict: raise it, or set positions to 'all'.")
        if not self.feature_weight:
            self.teacher_layers, self.teacher_hidden_sizes, self.teacher_grid = (), (), None
        self._set_decoder_stride()

    @property
    def cell_grid(self) -> tuple[int, int]:
        """(rows, columns) of mask cells in a crop."""
        size = self.image_size if isinstance(self.image_size, int) else tuple(self.image_size)
        return cell_grid(size, self.student_config.cell_size)

    def _set_decoder_stride(self) -> None:
        if self.teacher_grid is not None:
            (gh, gw), (th, tw) = self.cell_grid, self.teacher_grid
            if th % gh or tw % gw or th // gh != tw // gw or self.student_config.cell_size % (th // gh):
                raise ValueError(
                    f"the teacher's {th}x{tw} tokens do not divide the {gh}x{gw} mask cells of "
                    f"{self.student_config.cell_size} pixels evenly: change teacher_image_size."
                )
        if self.decoder == "full":
            self.student_config.decoder_stride = 1
        elif self.teacher_grid is not None:
            self.student_config.decoder_stride = self.student_config.cell_size // (th // gh)
        _ = self.student_config.decoder_widths  # refuses a stride that doubling does not reach

    @classmethod
    def for_teacher(cls, teacher: PatchTeacher, student_config: SparseUNetConfig, **kwargs) -> HGKDConfig:
        """The configuration for distilling `teacher` into a student; `kwargs` are the other fields."""
        return cls(
            student_config=student_config.to_dict(),
            teacher_name_or_path=teacher.name_or_path,
            teacher_revision=teacher.revision,
            teacher_layers=list(teacher.layers),
            teacher_hidden_sizes=list(teacher.hidden_sizes),
            teacher_grid=list(teacher.grid),
            teacher_image_size=list(teacher.image_size),
            teacher_input=teacher.teacher_input,
            **kwargs,
        )


def aligned_teacher_image_size(
    patch_size: int, image_size: int | Sequence[int], student_config: SparseUNetConfig
) -> tuple[int, int]:
    """The input size (height, width) at which a teacher's tokens divide the student's mask cells evenly.

    A cell of s pixels gets the number of tokens on a side nearest to s / patch_size at which a decoder that doubles
    the resolution can stop: 2 for a patch-16 or a patch-14 teacher and 32-pixel cells.

    Example:
        >>> aligned_teacher_image_size(14, 224, SparseUNetConfig())
        (196, 196)
    """
    size = image_size if isinstance(image_size, int) else tuple(image_size)
    gh, gw = cell_grid(size, student_config.cell_size)
    strides = student_config.reachable_strides
    tokens = min(
        (student_config.cell_size // stride for stride in strides),
        key=lambda count: abs(math.log(count * patch_size / student_config.cell_size)),
    )
    return gh * tokens * patch_size, gw * tokens * patch_size

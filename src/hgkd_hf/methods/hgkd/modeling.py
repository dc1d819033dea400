"""H-GKD: a sparse CNN sees the visible cells of an image and predicts what a frozen ViT makes of the whole.

Our independent reading of the abstract of arXiv 2309.09571; what it does not say follows SparK (2301.03580) and the
generic stage of G2SD, or is a field of `HGKDConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForPreTraining
from transformers.utils import ModelOutput

from ...objectives.feature_regression import TargetNorm, feature_regression_loss
from ...objectives.pixel_reconstruction import pixel_reconstruction_loss
from ...sparse.masking import cell_grid, expand_mask, num_visible_cells
from ...students.sparse_unet import SparseUNetConfig, SparseUNetModel
from ...teachers import PatchTeacher
from ..base.sparse_unet import SparseUNetDistiller, SparseUNetDistillerConfig
from .settings import HGKDSettings


class HGKDConfig(HGKDSettings, SparseUNetDistillerConfig):
    """Configuration of `HGKDForPreTraining`: the fields of `DistillerConfig`, those of `HGKDSettings`, and these.

    The student is a `SparseUNetConfig`, whose `decoder_stride` follows from `decoder`.

    Args:
        teacher_hidden_sizes: channels of the teacher's feature maps that are targets; one head each; empty = none.
        teacher_grid: (rows, columns) of its patch tokens, a multiple of the grid of mask cells.
    """

    model_type = "hgkd"

    teacher_hidden_sizes: list[int] | tuple[int, ...] = ()
    teacher_grid: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        num_visible_cells(self.cell_grid, self.mask_ratio)  # refuses a ratio that leaves none
        self.student_config.use_mask_token = self.mask_ratio > 0
        self.student_config.use_decoder = self.decoder != "none"
        if not self.feature_weight:
            self.teacher_layers, self.teacher_hidden_sizes, self.teacher_grid = (), (), None
        self._set_decoder_stride()

    @property
    def low_resolution(self) -> tuple[int, int]:
        """(height, width) in pixels of the crops of the first `low_resolution_share` of the steps.

        About two thirds of the full size, in whole cells, two at least; a side of fewer stays as it is.
        """
        size = self.student_config.cell_size
        return tuple(size * min(cells, max(2, round(cells * 2 / 3))) for cells in self.cell_grid)

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
    def fields_of_teacher(cls, teacher: PatchTeacher) -> dict[str, Any]:
        """With the sizes of its maps, and what it sees."""
        return super().fields_of_teacher(teacher) | {
            "teacher_hidden_sizes": list(teacher.hidden_sizes),
            "teacher_grid": list(teacher.grid),
            "teacher_input": teacher.teacher_input,
        }


@dataclass
class HGKDOutput(ModelOutput):
    """Output of `HGKDForPreTraining`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        feature_loss: scalar, mean over target layers; None without that term.
        pixel_loss: scalar; None without that term.
        feature_predictions: for each target layer (B, D, th, tw).
        feature_targets: for each target layer (B, D, th, tw), normalised as `target_norm` says.
        pixel_predictions: (B, 3, H, W), each hidden cell in its own normalised units.
        bool_masked_pos: (B, gh, gw) bool, True = hidden.
    """

    loss: Tensor | None = None
    feature_loss: Tensor | None = None
    pixel_loss: Tensor | None = None
    feature_predictions: tuple[Tensor, ...] | None = None
    feature_targets: tuple[Tensor, ...] | None = None
    pixel_predictions: Tensor | None = None
    bool_masked_pos: Tensor | None = None


class HGKDForPreTraining(SparseUNetDistiller):
    """Student, prediction heads and, attached from outside, a teacher.

    Example:
        >>> teacher = PatchTeacher.from_pretrained("facebook/dinov2-small", layers=(0,), image_size=196)
        >>> config = HGKDConfig.for_teacher(teacher, SparseUNetConfig(), image_size=224)
        >>> model = HGKDForPreTraining(config).attach_teacher(teacher)
        >>> model(pixel_values).loss.backward()
    """

    config_class = HGKDConfig

    def __init__(self, config: HGKDConfig):
        super().__init__(config)
        self.student = SparseUNetModel(config.student_config)
        width = config.student_config.decoder_widths[config.student_config.decoder_stride]
        if config.feature_weight:
            if not config.teacher_hidden_sizes:
                raise ValueError(
                    "feature_weight is above 0, but no teacher_hidden_sizes are known: build the config with "
                    "HGKDConfig.for_teacher(teacher, ...), or set feature_weight to 0 and pixel_weight to 1."
                )
            # Pixels of a token over pixels of a decoder position: 1 for the truncated decoder.
            kernel = config.student_config.cell_size * config.cell_grid[0] // config.teacher_grid[0]
            kernel //= config.student_config.decoder_stride
            deepest = [scale.channels for scale in self.student.scales[-2:]]
            self.feature_heads = nn.ModuleList(
                nn.Conv2d(width, size, kernel, stride=kernel)
                if self.student.decoder is not None
                else TwoScaleHead(deepest, size)
                for size in config.teacher_hidden_sizes
            )
            self.target_norms = nn.ModuleList(
                TargetNorm(config.target_norm, size) for size in config.teacher_hidden_sizes
            )
        if config.pixel_weight:
            self.pixel_head = nn.Conv2d(width, config.student_config.num_channels, 1)
        self.post_init()

    def check_teacher(self, teacher: PatchTeacher) -> None:
        """Raise `ValueError` if `teacher` does not give the features that the heads predict."""
        config = self.config
        for name, given, wanted in (
            ("hidden_sizes", tuple(teacher.hidden_sizes), tuple(config.teacher_hidden_sizes)),
            ("grid", tuple(teacher.grid), tuple(config.teacher_grid or ())),
            ("teacher_input", teacher.teacher_input, config.teacher_input),
        ):
            if given != wanted:
                raise ValueError(
                    f"the teacher's {name} is {given}, but this model was built for {wanted}: load the teacher with "
                    f"the model's layers {tuple(config.teacher_layers)}, image_size {config.teacher_image_size} and "
                    f"teacher_input {config.teacher_input!r} (of its config)."
                )

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs,
    ) -> HGKDOutput:
        """Mask, encode, decode, and compare with teacher and pixels.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            bool_masked_pos: (B, gh, gw) bool, True = hidden; by default drawn from torch's global generator.
            teacher_features: (B, C, th, tw), what a cached teacher saw in them; see `Distiller.teach`.

        Raises:
            RuntimeError: the feature term is wanted, but no teacher is attached.
            ValueError: image and mask do not fit.
        """
        config = self.config
        if bool_masked_pos is None:
            bool_masked_pos = self.random_masks(pixel_values)
        masked = config.mask_ratio > 0
        if self.training and self.progress >= 1 - config.unmasked_share:
            masked, bool_masked_pos = False, torch.zeros_like(bool_masked_pos)
        targets, positions = None, None
        if config.feature_weight:
            maps = self.teach(pixel_values, bool_masked_pos, teacher_features).feature_maps
            if masked and config.positions != "all":
                hidden = expand_mask(bool_masked_pos, maps[0].shape[-2:])
                positions = hidden if config.positions == "masked" else ~hidden
            known = positions if config.teacher_input == "visible" else None
            targets = tuple(norm(feature_map, known) for norm, feature_map in zip(self.target_norms, maps))
        seen = pixel_values
        if self.training and self.progress < config.low_resolution_share:
            seen = F.interpolate(seen, config.low_resolution, mode="bilinear", antialias=True)
        mask, visible = bool_masked_pos if masked else None, None
        if masked and self.training:  # the count is known, so that no accelerator is asked for it
            visible = num_visible_cells(config.cell_grid, config.mask_ratio)
            if mask.device.type == "cpu" and set((~mask).sum((1, 2)).tolist()) != {visible}:
                visible = None  # a mask of the caller's own
        decodes = self.student.decoder is not None
        output = self.student(seen, mask, output_hidden_states=not decodes, visible_per_image=visible)
        decoded = output.last_hidden_state if decodes else output.feature_maps[-2:]

        loss, terms = 0.0, {}
        if targets is not None:
            grid = targets[0].shape[-2:]
            terms["feature_predictions"] = tuple(_resized(head(decoded), grid) for head in self.feature_heads)
            losses = [
                feature_regression_loss(prediction, target, positions, config.loss, config.smooth_l1_beta)
                for prediction, target in zip(terms["feature_predictions"], targets)
            ]
            terms["feature_loss"] = torch.stack(losses).mean()
            loss = loss + config.feature_weight * terms["feature_loss"]
        if config.pixel_weight:
            terms["pixel_predictions"] = self.pixel_head(decoded)
            terms["pixel_loss"] = pixel_reconstruction_loss(terms["pixel_predictions"], pixel_values, bool_masked_pos)
            loss = loss + config.pixel_weight * terms["pixel_loss"]
        return HGKDOutput(loss=loss, feature_targets=targets, bool_masked_pos=bool_masked_pos, **terms)

    def describe_objective(self) -> dict[str, str]:
        """Mask and terms."""
        config = self.config
        (rows, columns), size = config.cell_grid, config.student_config.cell_size
        visible = num_visible_cells(config.cell_grid, config.mask_ratio)
        feature = f"feature {config.feature_weight} ({config.loss}, target norm {config.target_norm}, "
        facts = {
            "mask": f"{visible} of {rows * columns} cells of {size} px visible (mask ratio {config.mask_ratio})"
            if config.mask_ratio
            else "none: the student sees the whole image",
            "objective": f"{feature}{config.positions} positions), pixel {config.pixel_weight}",
        }
        if config.unmasked_share:
            facts["mask"] += f", in the last {config.unmasked_share:.0%} of the steps all"
        if config.low_resolution_share:
            height, width = config.low_resolution
            facts["resolution"] = f"{height}x{width} px in the first {config.low_resolution_share:.0%} of the steps"
        return facts


class TwoScaleHead(nn.Module):
    """What two maps say of a third: the sum of a 1x1 convolution of each, at the finer one's resolution.

    Nothing but a linear map lies between the encoder's features, which are all that leaves with the student, and the
    teacher's. Ours, by measurement (docs/results.md).
    """

    def __init__(self, channels: Sequence[int], out_channels: int):
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(size, out_channels, 1) for size in channels)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), the finest first, to (B, out, H_0, W_0)."""
        finest = feature_maps[0].shape[-2:]
        return sum(_resized(layer(x), finest) for layer, x in zip(self.projections, feature_maps))


def _resized(feature_map: Tensor, grid: torch.Size) -> Tensor:
    """(B, D, h, w) to (B, D, *grid), bilinear."""
    return feature_map if feature_map.shape[-2:] == grid else F.interpolate(feature_map, tuple(grid), mode="bilinear")


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


AutoConfig.register("hgkd", HGKDConfig)
AutoModelForPreTraining.register(HGKDConfig, HGKDForPreTraining)

"""RC-MAE with a masked CNN: it reconstructs hidden pixels, and agrees on them with a moving average of itself.

The loss is that of arXiv 2210.02077, whose students are vision transformers (MAE). The sparse CNN, its decoder and the
mask of cells in their place are SparK's (2301.03580), and our choice.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForPreTraining
from transformers.utils import ModelOutput

from ...objectives.pixel_reconstruction import pixel_reconstruction_loss
from ...objectives.reconstruction_consistency import reconstruction_consistency_loss
from ...sparse.masking import num_visible_cells
from ...students.sparse_unet import SparseUNetModel
from ..base.sparse_unet import SparseUNetDistiller, SparseUNetDistillerConfig
from .settings import RCMAESettings


class RCMAEConfig(RCMAESettings, SparseUNetDistillerConfig):
    """Configuration of `RCMAEForPreTraining`: the fields of `DistillerConfig` and those of `RCMAESettings`.

    The student is a `SparseUNetConfig`, whose decoder goes up to the pixels.
    """

    model_type = "rcmae"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.teacher_layers = ()
        self.student_config.use_mask_token, self.student_config.decoder_stride = True, 1
        _ = self.student_config.decoder_widths  # refuses a stride that doubling does not reach
        _ = self.visible_cells  # refuses a ratio that leaves none

    @property
    def visible_cells(self) -> int:
        """How many cells of a crop stay visible."""
        return num_visible_cells(self.cell_grid, self.mask_ratio)


@dataclass
class RCMAEOutput(ModelOutput):
    """Output of `RCMAEForPreTraining`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        pixel_loss: scalar, of the student's reconstruction against the image.
        consistency_loss: scalar, of the same against the average's reconstruction.
        feature_predictions: None; see `HGKDOutput`.
        pixel_predictions: (B, 3, H, W), the student's, each hidden cell in its own normalised units.
        bool_masked_pos: (B, gh, gw) bool, True = hidden.
    """

    loss: Tensor | None = None
    pixel_loss: Tensor | None = None
    consistency_loss: Tensor | None = None
    feature_predictions: tuple[Tensor, ...] | None = None
    pixel_predictions: Tensor | None = None
    bool_masked_pos: Tensor | None = None


class RCMAEForPreTraining(SparseUNetDistiller):
    """Student, pixel head, and the moving average of both, which checkpoints hold and the exported student does not.

    Attributes:
        average: `student` and `pixel_head` as they were on average; no gradients. Their BatchNorm sees the same cells
            as the student's, and has running statistics of its own.

    Example:
        >>> model = RCMAEForPreTraining(RCMAEConfig(student_config=SparseUNetConfig(), image_size=224))
        >>> model(pixel_values).loss.backward()
    """

    config_class = RCMAEConfig
    _averaged_at: float | None = None  # the progress at which the average last moved

    def __init__(self, config: RCMAEConfig):
        super().__init__(config)
        self.student = SparseUNetModel(config.student_config)
        self.pixel_head = nn.Conv2d(config.student_config.decoder_widths[1], config.student_config.num_channels, 1)
        self.post_init()
        self.average = copy.deepcopy(self._averaged).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As every module's; the average stays without gradients, which `from_pretrained` gives to all weights."""
        self.average.requires_grad_(False)
        return super().train(mode)

    @property
    def _averaged(self) -> nn.ModuleDict:
        return nn.ModuleDict({"student": self.student, "pixel_head": self.pixel_head})

    def restart_average(self) -> None:
        """Let the average be what the student is now, e.g. after its own weights were loaded."""
        self.average.load_state_dict(self._averaged.state_dict())

    @property
    def average_momentum(self) -> float:
        """Of the average in this step: `momentum` at first, 1 in the end, on a cosine (BYOL's, arXiv:2006.07733)."""
        return 1 - (1 - self.config.momentum) * (1 + math.cos(math.pi * self.progress)) / 2

    @torch.no_grad()
    def _move_average(self) -> None:
        """Once a step, before it: the weights that the step before has left count, also those of a resumed run.

        Of several batches of a step the first does it. Where nobody sets `progress`, every batch is a step.
        """
        if self.progress and self.progress == self._averaged_at:
            return
        self._averaged_at = self.progress
        averages, weights = list(self.average.parameters()), list(self._averaged.parameters())
        torch._foreach_lerp_(averages, weights, 1 - self.average_momentum)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs,
    ) -> RCMAEOutput:
        """Hide cells, and reconstruct them by the student and by its average; in training, move the average first.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            bool_masked_pos: (B, gh, gw) bool, True = hidden, the same number in every image (in training that of
                `config.mask_ratio`); by default drawn from torch's global generator.
            teacher_features: not read, as there is no teacher.

        Raises:
            ValueError: image and mask do not fit.
        """
        config = self.config
        if bool_masked_pos is None:
            bool_masked_pos = self.random_masks(pixel_values)
        visible = config.visible_cells if self.training else None  # known: no accelerator is asked for it
        if self.training:
            self._move_average()
        with torch.no_grad():
            target = self._reconstruct(self.average, pixel_values, bool_masked_pos, visible)
        prediction = self._reconstruct(self._averaged, pixel_values, bool_masked_pos, visible)
        pixel_loss = pixel_reconstruction_loss(prediction, pixel_values, bool_masked_pos)
        consistency_loss = reconstruction_consistency_loss(prediction, target, bool_masked_pos)
        return RCMAEOutput(
            loss=pixel_loss + config.consistency_weight * consistency_loss,
            pixel_loss=pixel_loss,
            consistency_loss=consistency_loss,
            pixel_predictions=prediction,
            bool_masked_pos=bool_masked_pos,
        )

    @staticmethod
    def _reconstruct(model: nn.ModuleDict, pixel_values: Tensor, mask: Tensor, visible: int | None) -> Tensor:
        """(B, 3, H, W)."""
        decoded = model["student"](pixel_values, mask, visible_per_image=visible).last_hidden_state
        return model["pixel_head"](decoded)

    def describe_objective(self) -> dict[str, str]:
        """Mask and terms."""
        config = self.config
        rows, columns = config.cell_grid
        return {
            "mask": f"{config.visible_cells} of {rows * columns} cells of {config.student_config.cell_size} px "
            f"visible (mask ratio {config.mask_ratio})",
            "objective": f"pixels 1, consistency {config.consistency_weight:g} with an average of momentum "
            f"{config.momentum:g}, rising to 1",
        }


AutoConfig.register("rcmae", RCMAEConfig)
AutoModelForPreTraining.register(RCMAEConfig, RCMAEForPreTraining)

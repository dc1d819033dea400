"""H-GKD, and with pixels alone SparK, for the training script."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Dataset

from ...sparse import check_exact
from ...sparse.masking import num_visible_cells
from ...students.presets import student_encoder_config
from ...students.sparse_unet import SparseUNetConfig
from ...teachers import PatchTeacher
from ..base.settings import Method
from . import HGKDConfig, HGKDForPreTraining, aligned_teacher_image_size

# Settings that are fields of the distiller's config under the same names.
CONFIG_FIELDS = (
    "image_size",
    "mask_ratio",
    "decoder",
    "loss",
    "smooth_l1_beta",
    "positions",
    "feature_weight",
    "pixel_weight",
)


@dataclass
class HGKDMethod(Method):
    """H-GKD: a sparse CNN predicts what a vision transformer makes of the hidden cells (arXiv:2309.09571)."""

    decoder_width: int = field(default=768, metadata={"help": "Decoder channels at the deepest scale."})
    cell_size: int | None = field(default=None, metadata={"help": "Side of a mask cell in pixels."})
    teacher_input: str = field(default="full", metadata={"help": "full | masked: what the teacher sees."})
    mask_ratio: float = field(default=0.6, metadata={"help": "Share of the cells that are hidden."})
    decoder: str = field(default="truncated", metadata={"help": "truncated | full."})
    loss: str = field(default="smooth-l1", metadata={"help": "smooth-l1 | mse | cosine."})
    smooth_l1_beta: float = field(default=2.0, metadata={"help": "Where smooth-l1 turns linear."})
    positions: str = field(default="all", metadata={"help": "masked | all: which positions are predicted."})
    feature_weight: float = field(default=1.0, metadata={"help": "Weight of the feature term."})
    pixel_weight: float = field(default=0.0, metadata={"help": "Weight of the pixel term (needs decoder full)."})
    sparse_backend: str = field(
        default="cells", metadata={"help": "cells | masked | spconv: what computes the visible cells; equal results."}
    )

    @property
    def title(self) -> str:
        """H-GKD, or without its feature term SparK."""
        return "H-GKD" if self.feature_weight else "SparK"

    def build_model(self) -> HGKDForPreTraining:
        """A sparse UNet, its heads and its teacher; refuses an encoder that leaks under a mask."""
        student_config = SparseUNetConfig(
            encoder_config=student_encoder_config(self.student, self.student_revision),
            cell_size=self.cell_size,
            decoder_width=self.decoder_width,
            decoder_stride=1 if self.decoder == "full" else None,
            sparse_backend=self.sparse_backend,
        )
        settings = {name: getattr(self, name) for name in CONFIG_FIELDS}
        if self.teacher is None:
            if self.feature_weight:
                raise ValueError(
                    "feature_weight is above 0, but there is no teacher: name one with --teacher, or set "
                    "--feature_weight 0 --pixel_weight 1 --decoder full for the pixel baseline."
                )
            settings["teacher_input"] = self.teacher_input
            model = HGKDForPreTraining(HGKDConfig(student_config=student_config, **settings))
        else:
            teacher = self._aligned_teacher(student_config)
            config = HGKDConfig.for_teacher(teacher, student_config, **settings)
            model = HGKDForPreTraining(config).attach_teacher(teacher)
        self.load_student(model.student.encoder)
        try:  # now rather than after days
            check_exact(model.student.encoder, model.student.config.cell_size, backend=self.sparse_backend)
        except ImportError as error:
            raise ValueError(f"{error} (--sparse_backend)") from error
        return model

    def _aligned_teacher(self, student_config: SparseUNetConfig) -> PatchTeacher:
        """The teacher, at the image size at which its tokens divide the student's cells."""
        image_size = self.teacher_image_size or aligned_teacher_image_size(
            PatchTeacher.patch_size_of(self.teacher, revision=self.teacher_revision), self.image_size, student_config
        )
        return self.load_teacher(PatchTeacher, image_size=image_size, teacher_input=self.teacher_input)

    def training_data(self, model: HGKDForPreTraining, seed: int, skipped_log: Path) -> Dataset:
        """One crop and one mask of every image."""
        masks = {"cell_grid": model.config.cell_grid, "mask_ratio": model.config.mask_ratio}
        return self.dataset_of(self.crop(model), seed, skipped_log, **masks)

    def describe_student(self, model: HGKDForPreTraining) -> str:
        """One line on encoder and decoder."""
        encoder = model.student.encoder
        weights, others = encoder.num_parameters() / 1e6, (model.num_parameters() - encoder.num_parameters()) / 1e6
        return (
            f"{type(encoder).__name__} ({self.student}), {weights:.1f} M parameters, stride "
            f"{model.student.total_stride}; decoder and heads {others:.2g} M"
        )

    def describe_teacher(self, model: HGKDForPreTraining) -> str:
        """One line on the teacher, if there is one."""
        return super().describe_teacher(model) if self.feature_weight else "none: pixels alone are predicted (SparK)"

    def describe_objective(self, model: HGKDForPreTraining) -> list[tuple[str, str]]:
        """Mask and terms."""
        config = model.config
        (rows, columns), size = config.cell_grid, config.student_config.cell_size
        visible = num_visible_cells(config.cell_grid, config.mask_ratio)
        mask = f"{visible} of {rows * columns} cells of {size} px visible (mask ratio {config.mask_ratio})"
        feature = f"feature {config.feature_weight} ({config.loss}, {config.positions})"
        return [("mask", mask), ("objective", f"{feature}, pixel {config.pixel_weight}")]

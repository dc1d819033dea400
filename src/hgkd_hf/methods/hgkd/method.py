"""H-GKD and SparK as commands run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from ...sparse import check_exact
from ...students.sparse_unet import SparseUNetConfig
from ...teachers import CNNTeacher, PatchTeacher
from ..base.method import Method
from .modeling import HGKDForPreTraining, aligned_teacher_image_size
from .settings import HGKDCommandSettings, HGKDSettings


@dataclass
class HGKDMethod(HGKDSettings, HGKDCommandSettings, Method):
    """H-GKD: a sparse CNN predicts what a vision transformer makes of the hidden cells (arXiv:2309.09571)."""

    model_class = HGKDForPreTraining

    def build_model(self) -> HGKDForPreTraining:
        """Also refuses an encoder that leaks under a mask: now rather than after days."""
        model = super().build_model()
        model.student.sparse_backend = self.sparse_backend
        if not self.mask_ratio:
            return model
        try:
            check_exact(model.encoder, model.config.student_config.cell_size, backend=self.sparse_backend)
        except ImportError as error:
            raise ValueError(f"{error} (--sparse_backend)") from error
        return model

    def student_config(self) -> SparseUNetConfig:
        """A UNet around the student's CNN."""
        return SparseUNetConfig(
            encoder_config=super().student_config(), cell_size=self.cell_size, decoder_width=self.decoder_width
        )

    def load_teacher(self, student_config: SparseUNetConfig) -> PatchTeacher | CNNTeacher:
        """The teacher, a ViT or a CNN, at the image size at which its tokens divide the student's cells."""
        if self.teacher is None:
            raise ValueError(
                "feature_weight is above 0, but there is no teacher: name one with --teacher, or set "
                "--feature_weight 0 --pixel_weight 1 --decoder full for the pixel baseline."
            )
        name, hub = self.teacher, {"revision": self.teacher_revision}
        if CNNTeacher.is_one(name, **hub):
            if self.teacher_input != "full":
                raise ValueError(
                    f"teacher_input {self.teacher_input!r} needs a vision transformer, but {name!r} is a CNN, which "
                    "sees the whole image: use 'full' (--teacher_input)."
                )
            kind, settings = CNNTeacher, {}
            patch_size = CNNTeacher.patch_size_of(name, self.teacher_layers, **hub)
        else:
            kind, settings = PatchTeacher, {"teacher_input": self.teacher_input}
            patch_size = PatchTeacher.patch_size_of(name, **hub)
        aligned = aligned_teacher_image_size(patch_size, self.image_size, student_config)
        return self.read_teacher(kind, image_size=self.teacher_image_size or aligned, **settings)

    def training_data(self, model: HGKDForPreTraining, seed: int, skipped_log: Path | None) -> Dataset:
        """One crop and one mask of every image.

        Raises:
            ValueError: colours are to be changed that the teacher has seen unchanged when it wrote its cache.
        """
        for name in ("color_distortion", "blur_probability"):
            if self.cache is not None and getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but the teacher of --teacher_cache saw images without: set "
                    f"--{name} 0, or leave --teacher_cache out."
                )
        masks = {"cell_grid": model.config.cell_grid, "mask_ratio": self.mask_ratio}
        colours = ("color_jitter", "color_distortion", "blur_probability")
        transform = self.crop(model, **{name: getattr(self, name) for name in colours})
        return self.dataset_of(transform, seed, skipped_log, **masks)

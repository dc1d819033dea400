"""What commands of methods share whose student is a CNN that may see a part of its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ...sparse import check_exact
from ...students.sparse_unet import SparseUNetConfig
from .command_settings import SparseUNetCommandSettings
from .method import Method
from .sparse_unet import SparseUNetDistiller


@dataclass
class SparseUNetMethod(SparseUNetCommandSettings, Method):
    """A CNN with a decoder is distilled, on one crop and one mask of every image."""

    def build_model(self) -> SparseUNetDistiller:
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

    def config_settings(self) -> dict[str, Any]:
        """Without `teacher_layers`, which the teacher tells."""
        return {name: value for name, value in super().config_settings().items() if name != "teacher_layers"}

    def student_config(self) -> SparseUNetConfig:
        """A UNet around the student's CNN."""
        return SparseUNetConfig(
            encoder_config=super().student_config(), cell_size=self.cell_size, decoder_width=self.decoder_width
        )

    def training_data(self, model: SparseUNetDistiller, seed: int, skipped_log: Path | None) -> Dataset:
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

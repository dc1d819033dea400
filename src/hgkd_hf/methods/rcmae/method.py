"""RC-MAE as commands run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from ...sparse import check_exact
from ...students.sparse_unet import SparseUNetConfig
from ..base.method import Method
from ..hgkd.settings import HGKDCommandSettings
from .modeling import RCMAEForPreTraining
from .settings import RCMAESettings


@dataclass
class RCMAEMethod(RCMAESettings, HGKDCommandSettings, Method):
    """RC-MAE: a masked CNN reconstructs pixels as an average of its earlier weights does; there is no teacher."""

    model_class = RCMAEForPreTraining

    def build_model(self) -> RCMAEForPreTraining:
        """Also refuses an encoder that leaks under a mask."""
        model = super().build_model()
        model.restart_average()  # from the weights that the student starts with
        model.student.sparse_backend = model.average["student"].sparse_backend = self.sparse_backend
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

    def training_data(self, model: RCMAEForPreTraining, seed: int, skipped_log: Path | None) -> Dataset:
        """One crop and one mask of every image."""
        colours = ("color_jitter", "color_distortion", "blur_probability")
        transform = self.crop(model, **{name: getattr(self, name) for name in colours})
        masks = {"cell_grid": model.config.cell_grid, "mask_ratio": self.mask_ratio}
        return self.dataset_of(transform, seed, skipped_log, **masks)

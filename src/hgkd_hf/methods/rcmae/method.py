"""RC-MAE as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.sparse_unet_method import SparseUNetMethod
from .modeling import RCMAEForPreTraining
from .settings import RCMAESettings


@dataclass
class RCMAEMethod(RCMAESettings, SparseUNetMethod):
    """RC-MAE: a masked CNN reconstructs pixels as an average of its earlier weights does; there is no teacher."""

    model_class = RCMAEForPreTraining

    def build_model(self) -> RCMAEForPreTraining:
        """The average begins as the student, whose own weights may have been loaded."""
        model = super().build_model()
        model.restart_average()
        model.average["student"].sparse_backend = self.sparse_backend
        return model

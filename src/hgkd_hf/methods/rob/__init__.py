"""RoB: a frozen vision transformer assigns images to prototypes, and a student learns the assignments (2301.09451)."""

from .configuration_rob import RoBConfig
from .modeling_rob import RoBForPreTraining, RoBOutput

__all__ = ["RoBConfig", "RoBForPreTraining", "RoBOutput"]

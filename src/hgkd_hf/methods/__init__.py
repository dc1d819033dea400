"""What a training script needs to know of a method: its settings, its model, its samples, how it is described."""

from __future__ import annotations

from .base.settings import Method
from .hgkd.settings import HGKDMethod
from .kd.settings import KDMethod
from .manifold.settings import ManifoldMethod
from .msdcrd.settings import MSDCRDMethod
from .rob.settings import RoBMethod

METHODS: dict[str, type[Method]] = {
    "hgkd": HGKDMethod,
    "rob": RoBMethod,
    "manifold": ManifoldMethod,
    "msdcrd": MSDCRDMethod,
    "kd": KDMethod,
}

__all__ = ["METHODS", "Method"]

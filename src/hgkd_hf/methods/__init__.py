"""The methods by name; a method is one folder: its settings, its config and model, and how commands run it."""

from __future__ import annotations

from .base.method import Method
from .hgkd import HGKDMethod
from .kd import KDMethod
from .manifold import ManifoldMethod
from .msdcrd import MSDCRDMethod
from .rob import RoBMethod

METHODS: dict[str, type[Method]] = {
    "hgkd": HGKDMethod,
    "rob": RoBMethod,
    "manifold": ManifoldMethod,
    "msdcrd": MSDCRDMethod,
    "kd": KDMethod,
}

__all__ = ["METHODS", "Method"]

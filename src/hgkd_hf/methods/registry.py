"""The methods by name, as commands know them."""

from __future__ import annotations

from .base.method import Method
from .coadvise.method import CoAdviseMethod
from .hgkd.method import HGKDMethod
from .kd.method import KDMethod
from .manifold.method import ManifoldMethod
from .msdcrd.method import MSDCRDMethod
from .rcmae.method import RCMAEMethod
from .reviewkd.method import ReviewKDMethod
from .rob.method import RoBMethod
from .sskd.method import SSKDMethod
from .tinymim.method import TinyMIMMethod
from .wcord.method import WCoRDMethod

METHODS: dict[str, type[Method]] = {
    "hgkd": HGKDMethod,
    "rob": RoBMethod,
    "manifold": ManifoldMethod,
    "msdcrd": MSDCRDMethod,
    "reviewkd": ReviewKDMethod,
    "wcord": WCoRDMethod,
    "sskd": SSKDMethod,
    "coadvise": CoAdviseMethod,
    "kd": KDMethod,
    "rcmae": RCMAEMethod,
    "tinymim": TinyMIMMethod,
}

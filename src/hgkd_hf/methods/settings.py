"""The settings of every method by name: what its command takes, told before its model, and torch, are imported."""

from __future__ import annotations

from .base.command_settings import CommandSettings, LabelledCommandSettings, SparseUNetCommandSettings
from .base.settings import Settings
from .coadvise.settings import CoAdviseSettings
from .hgkd.settings import HGKDSettings
from .kd.settings import KDSettings
from .manifold.settings import ManifoldDistillationSettings
from .msdcrd.settings import MSDCRDSettings
from .rcmae.settings import RCMAESettings
from .reviewkd.settings import ReviewKDSettings
from .rob.settings import RoBCommandSettings, RoBSettings
from .sskd.settings import SSKDSettings
from .tinymim.settings import TinyMIMSettings
from .wcord.settings import WCoRDSettings

SETTINGS: dict[str, tuple[type[Settings], type[Settings]]] = {
    "hgkd": (HGKDSettings, SparseUNetCommandSettings),
    "rob": (RoBSettings, RoBCommandSettings),
    "manifold": (ManifoldDistillationSettings, LabelledCommandSettings),
    "msdcrd": (MSDCRDSettings, LabelledCommandSettings),
    "reviewkd": (ReviewKDSettings, LabelledCommandSettings),
    "wcord": (WCoRDSettings, LabelledCommandSettings),
    "sskd": (SSKDSettings, LabelledCommandSettings),
    "coadvise": (CoAdviseSettings, LabelledCommandSettings),
    "kd": (KDSettings, LabelledCommandSettings),
    "rcmae": (RCMAESettings, SparseUNetCommandSettings),
    "tinymim": (TinyMIMSettings, CommandSettings),
}

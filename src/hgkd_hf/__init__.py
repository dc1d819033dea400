"""hgkd_hf: small CNN students distilled from vision transformers by masked image modelling.

Importing it registers every config and model with transformers' Auto classes.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .version import __version__


def _only_helps() -> bool:
    """Whether this program is `hgkd`, asked for its help, which is answered without the seconds that torch takes."""
    program, *arguments = sys.argv or [""]
    module = program == "-m" and any(word.startswith("hgkd_hf.cli.") for word in sys.orig_argv)
    return (module or Path(program).stem == "hgkd") and (not arguments or not {"-h", "--help"}.isdisjoint(arguments))


if TYPE_CHECKING or not _only_helps():
    from .methods.hgkd.modeling import HGKDConfig, HGKDForPreTraining
    from .methods.kd.modeling import KDConfig, KDForImageClassification
    from .methods.manifold.modeling import ManifoldDistillationConfig, ManifoldDistillationForImageClassification
    from .methods.msdcrd.modeling import MSDCRDConfig, MSDCRDForImageClassification
    from .methods.rob.modeling import RoBConfig, RoBForPreTraining
    from .methods.settings import SETTINGS
    from .sparse import sparsify, visible
    from .sparse.masking import VisibleCells, random_cell_mask
    from .students.code import allow_code
    from .students.module_backbone import ModuleBackbone, ModuleBackboneConfig
    from .students.sparse_unet import (
        SparseUNetBackbone,
        SparseUNetConfig,
        SparseUNetForImageClassification,
        SparseUNetForSemanticSegmentation,
        SparseUNetModel,
    )
    from .teachers import ClassifierTeacher, CNNTeacher, PatchTeacher

    for _method in SETTINGS:
        import_module(f"{__name__}.methods.{_method}.modeling")

__all__ = [
    "CNNTeacher",
    "ClassifierTeacher",
    "HGKDConfig",
    "HGKDForPreTraining",
    "KDConfig",
    "KDForImageClassification",
    "MSDCRDConfig",
    "MSDCRDForImageClassification",
    "ManifoldDistillationConfig",
    "ManifoldDistillationForImageClassification",
    "ModuleBackbone",
    "ModuleBackboneConfig",
    "PatchTeacher",
    "RoBConfig",
    "RoBForPreTraining",
    "SparseUNetBackbone",
    "SparseUNetConfig",
    "SparseUNetForImageClassification",
    "SparseUNetForSemanticSegmentation",
    "SparseUNetModel",
    "VisibleCells",
    "__version__",
    "allow_code",
    "random_cell_mask",
    "sparsify",
    "visible",
]

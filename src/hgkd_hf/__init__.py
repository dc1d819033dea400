"""hgkd_hf: small CNN students distilled from vision transformers by masked image modelling.

Importing it registers every config and model with transformers' Auto classes.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from .methods.hgkd import HGKDConfig, HGKDForPreTraining
from .methods.kd import KDConfig, KDForImageClassification
from .methods.manifold import ManifoldDistillationConfig, ManifoldDistillationForImageClassification
from .methods.msdcrd import MSDCRDConfig, MSDCRDForImageClassification
from .methods.rob import RoBConfig, RoBForPreTraining
from .sparse import sparsify, visible
from .sparse.masking import VisibleCells, random_cell_mask
from .students.sparse_unet import (
    SparseUNetBackbone,
    SparseUNetConfig,
    SparseUNetForImageClassification,
    SparseUNetForSemanticSegmentation,
    SparseUNetModel,
)
from .teachers import ClassifierTeacher, PatchTeacher
from .version import __version__

AutoConfig.register("sparse_unet", SparseUNetConfig)
AutoModel.register(SparseUNetConfig, SparseUNetModel)
AutoBackbone.register(SparseUNetConfig, SparseUNetBackbone)
AutoModelForImageClassification.register(SparseUNetConfig, SparseUNetForImageClassification)
AutoModelForSemanticSegmentation.register(SparseUNetConfig, SparseUNetForSemanticSegmentation)
AutoImageProcessor.register(SparseUNetConfig, image_processor_classes={"pil": SegformerImageProcessorPil})
AutoConfig.register("hgkd", HGKDConfig)
AutoModelForPreTraining.register(HGKDConfig, HGKDForPreTraining)
AutoConfig.register("rob", RoBConfig)
AutoModelForPreTraining.register(RoBConfig, RoBForPreTraining)
AutoConfig.register("kd", KDConfig)
AutoModelForImageClassification.register(KDConfig, KDForImageClassification)
AutoConfig.register("manifold_distillation", ManifoldDistillationConfig)
AutoModelForImageClassification.register(ManifoldDistillationConfig, ManifoldDistillationForImageClassification)
AutoConfig.register("msdcrd", MSDCRDConfig)
AutoModelForImageClassification.register(MSDCRDConfig, MSDCRDForImageClassification)

__all__ = [
    "ClassifierTeacher",
    "HGKDConfig",
    "HGKDForPreTraining",
    "KDConfig",
    "KDForImageClassification",
    "MSDCRDConfig",
    "MSDCRDForImageClassification",
    "ManifoldDistillationConfig",
    "ManifoldDistillationForImageClassification",
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
    "random_cell_mask",
    "sparsify",
    "visible",
]

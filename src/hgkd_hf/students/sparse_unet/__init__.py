"""The UNet-style student: a stock CNN as sparse encoder, and a light decoder."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from .configuration_sparse_unet import SparseUNetConfig
from .modeling_sparse_unet import (
    SparseUNetBackbone,
    SparseUNetForImageClassification,
    SparseUNetForSemanticSegmentation,
    SparseUNetModel,
    SparseUNetModelOutput,
    SparseUNetPreTrainedModel,
)

AutoConfig.register("sparse_unet", SparseUNetConfig)
AutoModel.register(SparseUNetConfig, SparseUNetModel)
AutoBackbone.register(SparseUNetConfig, SparseUNetBackbone)
AutoModelForImageClassification.register(SparseUNetConfig, SparseUNetForImageClassification)
AutoModelForSemanticSegmentation.register(SparseUNetConfig, SparseUNetForSemanticSegmentation)
AutoImageProcessor.register(SparseUNetConfig, image_processor_classes={"pil": SegformerImageProcessorPil})

__all__ = [
    "SparseUNetBackbone",
    "SparseUNetConfig",
    "SparseUNetForImageClassification",
    "SparseUNetForSemanticSegmentation",
    "SparseUNetModel",
    "SparseUNetModelOutput",
    "SparseUNetPreTrainedModel",
]

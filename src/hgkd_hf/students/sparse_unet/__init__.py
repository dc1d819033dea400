"""The UNet-style student: a stock CNN as sparse encoder, and a light decoder."""

from .configuration_sparse_unet import SparseUNetConfig
from .modeling_sparse_unet import (
    SparseUNetBackbone,
    SparseUNetForImageClassification,
    SparseUNetForSemanticSegmentation,
    SparseUNetModel,
    SparseUNetModelOutput,
    SparseUNetPreTrainedModel,
)

__all__ = [
    "SparseUNetBackbone",
    "SparseUNetConfig",
    "SparseUNetForImageClassification",
    "SparseUNetForSemanticSegmentation",
    "SparseUNetModel",
    "SparseUNetModelOutput",
    "SparseUNetPreTrainedModel",
]

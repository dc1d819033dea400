"""A small CNN, a batch of three classes and a CNN that teaches them: what tests of methods with labels share."""

import torch
from transformers import ResNetConfig, ResNetForImageClassification

from hgkd_hf import ClassifierTeacher

CNN = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "layer_type": "basic", "num_labels": 3}


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels."""
    return torch.randn(size, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(size) % 3


def cnn_teacher(**settings) -> ClassifierTeacher:
    """Wider than the student, with logits that differ."""
    torch.manual_seed(2)
    model = ResNetForImageClassification(ResNetConfig(**CNN | {"hidden_sizes": [16, 20, 32]}))
    torch.nn.init.normal_(model.classifier[1].weight)
    return ClassifierTeacher(model, name_or_path="tiny-cnn", **settings)

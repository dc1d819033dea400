"""A teacher and images for the contract of all methods."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """`images`: eight of two classes; `classifier`: a ViT that knows two classes."""
    folder = tmp_path_factory.mktemp("world")
    for index in range(8):
        path = folder / "images" / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((72, 72), 20 + 20 * index).convert("RGB").save(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=64, patch_size=16, num_labels=2))
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder / "classifier")
    return folder

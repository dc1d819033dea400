"""Tiny models that many tests share; everything is built here and offline."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig, ViTConfig, ViTModel

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def encoder_config() -> ResNetConfig:
    """A ResNet of stride 16 with maps at 4, 8 and 16."""
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic")


@pytest.fixture
def student_config(encoder_config) -> SparseUNetConfig:
    return SparseUNetConfig(encoder_config=encoder_config, decoder_width=32)


@pytest.fixture
def vit() -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=8
    )
    return ViTModel(config, add_pooling_layer=False)


@pytest.fixture
def teacher(vit) -> PatchTeacher:
    return PatchTeacher(vit, layers=(2, -1), name_or_path="tiny-vit")


@pytest.fixture
def hgkd(teacher, student_config) -> HGKDForPreTraining:
    """64-pixel crops, 4x4 cells of 16 pixels, 8x8 teacher tokens."""
    torch.manual_seed(1)
    config = HGKDConfig.for_teacher(teacher, student_config, image_size=64, mask_ratio=0.6)
    return HGKDForPreTraining(config).attach_teacher(teacher)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: that of the system, or playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `dev`)")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        if path is None and not Path(driver.chromium.executable_path).is_file():
            pytest.skip("needs Chromium: `playwright install chromium`, or one on the PATH")
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()

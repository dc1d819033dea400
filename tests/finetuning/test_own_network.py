"""Students from outside of transformers are fine-tuned where their layers are known."""

from pathlib import Path

import pytest
import torch
from finetune_flags import flags
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

from hgkd_hf import ModuleBackboneConfig, SparseUNetConfig, SparseUNetModel
from hgkd_hf.cli.finetune import main as finetune
from hgkd_hf.hub import student_image_processor

AUTO = {"semantic-segmentation": AutoModelForSemanticSegmentation, "object-detection": AutoModelForObjectDetection}


def network() -> nn.Module:
    def block(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())

    return nn.Sequential(*(block(channels) for channels in (3, 16, 16, 16, 16)))


@pytest.fixture
def student(tmp_path) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(ModuleBackboneConfig.for_factory(network)).save_pretrained(tmp_path / "student")
    student_image_processor(64, (0.5,) * 3, (0.25,) * 3).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.parametrize("task", AUTO)
def test_heads_on_its_maps(task, student, rectangles, tmp_path):
    settings = {"max_steps": 1, "eval_split": None, "learning_rate": 0.0}
    finetune(flags(rectangles, student, tmp_path / "run", task, **settings))
    model, loading = AUTO[task].from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert not loading["missing_keys"] | loading["unexpected_keys"]
    weights = dict(model.named_parameters())
    found = next(value for name, value in weights.items() if name.endswith("encoder.module.0.0.weight"))
    assert torch.equal(found, AutoModel.from_pretrained(student).module[0][0].weight)


def test_a_classifier_on_the_whole_student(student, rectangles, tmp_path):
    """Of `student/sparse_unet`, since the network itself has no stock classifier."""
    config = ModuleBackboneConfig.for_factory(network)
    whole = SparseUNetModel(SparseUNetConfig(encoder_config=config, decoder_width=64))
    whole.encoder.load_state_dict(AutoModel.from_pretrained(student).state_dict())
    whole.save_pretrained(student / "sparse_unet")
    student_image_processor(64, (0.5,) * 3, (0.25,) * 3).save_pretrained(student / "sparse_unet")
    settings = {"max_steps": 1, "eval_split": None, "learning_rate": 0.0}
    finetune(flags(rectangles, student / "sparse_unet", tmp_path / "run", "image-classification", **settings))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run/model")
    found = model.sparse_unet.encoder.module[0][0].weight
    assert torch.equal(found, AutoModel.from_pretrained(student).module[0][0].weight)

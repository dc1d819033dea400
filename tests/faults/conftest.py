import json
import shutil
from pathlib import Path

import pytest
import torch
from toy_run import STUDENT, Lives, write_images
from transformers import ViTConfig, ViTModel

from hgkd_hf.cli import distill as command


@pytest.fixture(scope="session")
def lives(tmp_path_factory) -> Lives:
    return Lives(write_images(tmp_path_factory.mktemp("toy") / "images"))


@pytest.fixture(scope="session")
def distill():
    """The command, in this process."""
    return command


@pytest.fixture(scope="session")
def flags(tmp_path_factory, lives):
    """`flags(run, **settings)`: the command line of a run of four steps that saves every two."""
    teacher = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(teacher)

    def get(run, **settings):
        settings = {
            "dataset": lives.images,
            "teacher": teacher,
            "student": json.dumps(STUDENT),
            "decoder_width": 16,
            "image_size": 64,
            "mask_ratio": 0.6,
            "low_resolution_share": 0.0,
            "max_steps": 4,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "disable_tqdm": True,
            "output_dir": run,
            **settings,
        }
        return [f"--{name}={value}" for name, value in settings.items()]

    return get


@pytest.fixture(scope="session")
def finished(distill, flags, tmp_path_factory):
    """A run that came to its end; of its checkpoints that of step 2 is left."""
    run = tmp_path_factory.mktemp("runs") / "run"
    distill.main(flags(run))
    shutil.rmtree(run / "checkpoint-4")
    return run


@pytest.fixture
def stopped(finished, tmp_path):
    """A run that has its checkpoint of step 2."""
    return Path(shutil.copytree(finished, tmp_path / "run"))

"""training/distill.py after a stop: what it goes on with, and what it refuses."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from test_fuzz_recipes import STUDENT
from transformers import ViTConfig, ViTModel

SCRIPT = Path(__file__).parents[2] / "training" / "distill.py"


@pytest.fixture(scope="module")
def distill():
    specification = importlib.util.spec_from_file_location("distill_script", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def flags(tmp_path_factory, lives):
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


@pytest.fixture(scope="module")
def finished(distill, flags, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    distill.main(flags(run))
    shutil.rmtree(run / "checkpoint-4")
    return run


@pytest.fixture
def stopped(finished, tmp_path):
    """A run that has its checkpoint of step 2."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def entries(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_goes_on(distill, flags, stopped, finished):
    distill.main(flags(stopped, resume=True))
    assert entries(stopped) == entries(finished)


def test_resume_before_the_first_checkpoint_begins_anew(distill, flags, stopped, finished):
    shutil.rmtree(stopped / "checkpoint-2")
    distill.main(flags(stopped, resume=True))
    assert entries(stopped) == entries(finished)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_ratio": 0.5}, "mask_ratio was 0.6, now 0.5"),
        ({"decoder_width": 32}, "decoder_width was 16, now 32"),
        ({"seed": 1, "max_samples": 20}, "max_samples was None, now 20; rows was 22, now 20; seed was 42, now 1"),
        ({"per_device_train_batch_size": 2}, "images_per_step was 4, now 2"),
    ],
)
def test_changed_settings_are_refused(distill, flags, stopped, changes, words):
    with pytest.raises(ValueError) as caught:
        distill.main(flags(stopped, resume=True, **changes))
    assert words in str(caught.value)
    assert "--allow_changes" in str(caught.value)


def test_a_teacher_changed_under_its_name_is_refused(distill, flags, stopped, tmp_path):
    teacher = next(word.removeprefix("--teacher=") for word in flags(stopped) if word.startswith("--teacher="))
    kept = tmp_path / "kept"
    os.rename(teacher, kept)
    try:
        model = ViTModel.from_pretrained(kept, add_pooling_layer=False)
        model.layernorm.weight.data[0] += 1
        model.save_pretrained(teacher)
        with pytest.raises(ValueError, match="teacher_weights was '[0-9a-f]{32}', now '[0-9a-f]{32}'"):
            distill.main(flags(stopped, resume=True))
    finally:
        shutil.rmtree(teacher)
        os.rename(kept, teacher)


def test_changes_that_are_allowed(distill, flags, stopped, finished):
    distill.main(flags(stopped, resume=True, mask_ratio=0.5, allow_changes=True))
    assert entries(stopped)[:2] == entries(finished)[:2]
    assert entries(stopped)[2:] != entries(finished)[2:]


def test_nothing_whole_to_go_on_from(distill, flags, stopped):
    (stopped / "checkpoint-2" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="--resume: there is no whole checkpoint in"):
        distill.main(flags(stopped, resume=True))
    with pytest.raises(ValueError, match="holds checkpoint-2: add --resume to go on"):
        distill.main(flags(stopped))

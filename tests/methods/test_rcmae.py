"""RC-MAE: how its average moves, what of it is saved, and its loss by hand."""

import json
import shutil

import pytest
import torch
from contract import STUDENT
from safetensors.torch import load_file
from transformers import AutoModel, ConvNextConfig

from hgkd_hf.cli import distill
from hgkd_hf.methods.rcmae.method import RCMAEMethod
from hgkd_hf.methods.rcmae.modeling import RCMAEConfig, RCMAEForPreTraining
from hgkd_hf.objectives.pixel_reconstruction import pixel_reconstruction_loss


@pytest.fixture
def model(student_config) -> RCMAEForPreTraining:
    """64-pixel crops, 4x4 cells of 16 pixels."""
    torch.manual_seed(1)
    config = RCMAEConfig(student_config=student_config, image_size=64, consistency_weight=2.0, momentum=0.9)
    return RCMAEForPreTraining(config)


def batch() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def shift(module: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by


def lag(model: RCMAEForPreTraining) -> float:
    """Student minus average, which is the same of all weights here."""
    (gap,) = {
        round((own - average).mean().item(), 5)
        for own, average in zip(model._averaged.parameters(), model.average.parameters())
    }
    return gap


def test_loss_by_hand(model):
    """The average begins as the student: the consistency is 0, then that of the two reconstructions."""
    model.eval()
    assert model(batch()).consistency_loss == 0
    shift(model.average, 0.01)
    output = model(batch())
    mask = output.bool_masked_pos
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand(-1, 3, -1, -1)
    decoded = model.average["student"](batch(), mask).last_hidden_state
    consistency = (output.pixel_predictions - model.average["pixel_head"](decoded))[hidden].square().mean()
    pixel_loss = pixel_reconstruction_loss(output.pixel_predictions, batch(), mask)
    torch.testing.assert_close(output.consistency_loss, consistency)
    torch.testing.assert_close(output.loss, pixel_loss + 2 * consistency)


def test_the_average_moves_once_a_step_by_a_cosine(model):
    """Of a gap of 1 it keeps the momentum: 0.9, in the middle of the training 0.95, in the end 1."""
    shift(model.student, 1.0)
    shift(model.pixel_head, 1.0)
    model(batch())
    assert lag(model) == pytest.approx(0.9)
    model.progress = 0.5
    for _ in range(3):  # batches of one step
        model(batch())
    assert lag(model) == pytest.approx(0.9 * 0.95)
    model.progress = 1 - 1e-6
    model(batch())
    model.eval()(batch())
    assert lag(model) == pytest.approx(0.9 * 0.95)


def test_the_average_gets_no_gradients_however_the_model_came(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = RCMAEForPreTraining.from_pretrained(tmp_path)
    for one in (model, loaded):
        assert not any(parameter.requires_grad for parameter in one.average.parameters())
        assert all(parameter.requires_grad for parameter in one._averaged.parameters())


def test_a_pretrained_student_is_its_own_average(world, tmp_path):
    config = ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    settings = {"student": str(tmp_path), "student_pretrained": True, "image_size": 64, "decoder_width": 32}
    model = RCMAEMethod(method="rcmae", dataset=str(world / "images"), **settings).build_model()
    assert lag(model) == 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0, but it must be above 0 and below 1"),
        ({"mask_ratio": 0.99}, "leaves none of the 4x4 cells visible"),
        ({"consistency_weight": 0}, "consistency_weight is 0, but it must be above 0"),
        ({"momentum": 1.0}, "momentum is 1.0, but it must be at least 0 and below 1"),
    ],
)
def test_bad_config(student_config, fields, match):
    with pytest.raises(ValueError, match=match):
        RCMAEConfig(student_config=student_config, image_size=64, **fields)


def test_checkpoints_hold_the_average_a_resumed_run_equals_one_and_students_lack_it(world, tmp_path):
    """Four steps of two batches each, resumed after the second: equal losses and weights, the average's too."""
    settings = {"method": "rcmae", "dataset": world / "images", "student": json.dumps(STUDENT), "image_size": 64}
    settings |= {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "momentum": 0.9}
    settings |= {"decoder_width": 32, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    settings |= {"split": "train[:75%]", "knn_split": "train[75%:]", "knn_k": 2, "save_total_limit": 3}
    settings |= {"eval_strategy": "steps", "eval_steps": 4, "warmup_steps": 0}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += ["--learning_rate=0.01", "--report_to=none", "--disable_tqdm=true"]

    def losses(run) -> list[float]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [line["consistency_loss"] for line in lines if "consistency_loss" in line]

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    distill.main([*flags, f"--output_dir={whole}"])
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    distill.main([*flags, f"--output_dir={resumed}", "--resume=true"])
    assert losses(resumed) == losses(whole)
    assert losses(whole)[0] == 0 < losses(whole)[1]
    saved, again = (load_file(run / "checkpoint-4" / "model.safetensors") for run in (whole, resumed))
    assert saved.keys() == again.keys()
    assert [name for name in saved if not torch.equal(saved[name], again[name])] == []
    own = {name for name in saved if name.startswith(("student.", "pixel_head."))}
    assert {name.removeprefix("average.") for name in saved} == own
    assert any(not torch.equal(saved[name], saved[f"average.{name}"]) for name in own)
    assert (whole / "pictures").is_dir()
    for folder in ("student", "student/sparse_unet"):
        assert not any("average" in name for name in load_file(whole / folder / "model.safetensors"))
    _, info = AutoModel.from_pretrained(whole / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]

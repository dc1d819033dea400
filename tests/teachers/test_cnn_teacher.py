"""CNNs as teachers: the maps of a stage, at the size at which they divide the student's cells."""

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from PIL import Image
from tiny_teachers import build

from hgkd_hf import CNNTeacher, HGKDConfig, HGKDForPreTraining
from hgkd_hf.cli.distill import main as distill
from hgkd_hf.cli.teach import main as teach
from hgkd_hf.hub import student_image_processor

FOUR = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
CNNS = {
    "dinov3_convnext": tf.DINOv3ConvNextConfig(**FOUR),
    "convnext": tf.ConvNextConfig(**FOUR),
    "convnextv2": tf.ConvNextV2Config(**FOUR),
    "resnet": tf.ResNetConfig(**FOUR, embedding_size=8, layer_type="basic"),
}


def saved(name: str, folder: Path, kind=tf.AutoModel) -> Path:
    torch.manual_seed(0)
    kind.from_config(CNNS[name]).save_pretrained(folder)
    student_image_processor(64, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CNNS)
def test_maps_of_a_stage(name, tmp_path):
    """As the stock model gives them, after the teacher's own normalisation."""
    folder = saved(name, tmp_path)
    teacher = CNNTeacher.from_pretrained(folder, layers=(3,), image_size=64).train()
    assert (teacher.patch_size, teacher.grid, teacher.hidden_sizes) == (16, (4, 4), (24,))
    assert CNNTeacher.is_one(folder)
    assert CNNTeacher.patch_size_of(folder) == 32
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    model = tf.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model((images - mean) / std, output_hidden_states=True).hidden_states
    expected = next(state for state in states if state.shape[1:] == (24, 4, 4))
    output = teacher(images)
    torch.testing.assert_close(output.feature_maps[0], expected)
    torch.testing.assert_close(output.pooled, expected.mean((2, 3)))
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_classifiers_backbone_teaches(tmp_path):
    folder = saved("resnet", tmp_path, tf.AutoModelForImageClassification)
    assert CNNTeacher.from_pretrained(folder, image_size=64)(torch.rand(1, 3, 64, 64)).feature_maps[0].shape[1] == 32


def test_it_teaches_by_hgkd(student_config):
    teacher = CNNTeacher(tf.AutoModel.from_config(CNNS["convnext"]), layers=(3,), image_size=64, name_or_path="tiny")
    config = HGKDConfig.for_teacher(teacher, student_config, image_size=64, mask_ratio=0.5)
    model = HGKDForPreTraining(config).attach_teacher(teacher)
    output = model(torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4).argsort(-1) < 2)
    output.loss.backward()
    assert output.feature_predictions[0].shape == output.feature_targets[0].shape == (2, 24, 4, 4)
    assert not any(name.startswith("teacher") for name in model.state_dict())


@pytest.fixture
def images(tmp_path) -> Path:
    for index in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (60 * index, 100, 200)).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def flags(teacher: Path, images: Path, run: Path, *more: str) -> list[str]:
    student = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
    settings = {"teacher": teacher, "dataset": images, "output_dir": run, "image_size": 64, "decoder_width": 32}
    settings |= {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": "none", "student": json.dumps(student)}
    return [*(f"--{name}={value}" for name, value in settings.items()), *more]


def test_the_command_takes_it(images, tmp_path, capsys):
    teacher = saved("dinov3_convnext", tmp_path / "teacher")
    distill(flags(teacher, images, tmp_path / "run", "--teacher_layers", "3"))
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["teacher_layers"], config["teacher_grid"], config["teacher_hidden_sizes"]) == ([3], [4, 4], [24])
    assert "layers 3 at 64x64 px, input full" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "layers"), [("dinov3_convnext", [-1]), ("vit", [0])])
def test_the_default_layers_fit_the_teacher(name, layers, images, tmp_path):
    """For the student's command and for the cache's alike."""
    teacher = tmp_path / "teacher"
    saved(name, teacher) if name in CNNS else build(name).save_pretrained(teacher)
    distill(flags(teacher, images, tmp_path / "run"))
    assert json.loads((tmp_path / "run/config.json").read_text())["teacher_layers"] == layers
    if name == "vit":
        words = ["--image_size=64", f"--output_dir={tmp_path / 'cache'}"]
        teach([f"--teacher={teacher}", f"--dataset={images}", *words])
        distill(flags(teacher, images, tmp_path / "again", f"--teacher_cache={tmp_path / 'cache'}"))
        assert json.loads((tmp_path / "again/config.json").read_text())["teacher_layers"] == layers


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--teacher_layers", "5"], r"must be 1 to 4 \(its maps, finest first\) or -1 \(the last\), not 5"),
        (["--teacher_layers", "3", "4"], "have maps of strides 16, 32, but all must have one grid"),
        (["--teacher_input=masked"], "needs a vision transformer, but .* is a CNN"),
        (["--teacher_layers", "3", "--teacher_image_size=60"], "60 is not a multiple of its 16-pixel"),
    ],
)
def test_bad_input_is_one_sentence(more, message, images, tmp_path):
    teacher = saved("convnext", tmp_path / "teacher")
    with pytest.raises(ValueError, match=message):
        distill(flags(teacher, images, tmp_path / "run", *more, "--dry_run"))


def test_a_checkpoint_with_holes_is_refused(tmp_path):
    folder = saved("resnet", tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"depths": [1, 2, 1, 1]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="would be partly random: its checkpoint lacks"):
        CNNTeacher.from_pretrained(folder, image_size=64)

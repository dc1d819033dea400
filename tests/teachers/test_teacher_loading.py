"""`PatchTeacher.from_pretrained`: what is loaded, from which commit, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file
from tiny_teachers import BUILD, VIT, build, images

from hgkd_hf.students.presets import student_encoder_config
from hgkd_hf.teachers import ClassifierTeacher, PatchTeacher, checkpoint, patch_teacher

SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.parametrize("name", BUILD)
def test_from_pretrained_restores_the_model(name, tmp_path):
    model = build(name)
    for parameter in model.parameters():
        parameter.data = parameter.half()
    model.save_pretrained(tmp_path)
    teacher = PatchTeacher.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert not any("text" in key or "decoder" in key for key, _ in teacher.named_parameters())
    assert (teacher.name_or_path, teacher.revision) == (str(tmp_path), None)
    pixels = images(64, 64)
    assert torch.equal(teacher(pixels).feature_maps[0], PatchTeacher(model.float())(pixels).feature_maps[0])


def test_masked_from_pretrained_loads_the_mask_token_or_the_decoder(tmp_path):
    source = tf.ViTForMaskedImageModeling(tf.ViTConfig(**VIT, encoder_stride=16))
    torch.nn.init.normal_(source.vit.embeddings.mask_token)
    source.save_pretrained(tmp_path / "simmim")
    teacher = PatchTeacher.from_pretrained(tmp_path / "simmim", teacher_input="masked")
    assert torch.equal(teacher.model.embeddings.mask_token, source.vit.embeddings.mask_token)

    build("clip").save_pretrained(tmp_path / "clip")  # has no mask token: zero
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    blind = PatchTeacher.from_pretrained(tmp_path / "clip", teacher_input="masked")(images(64, 64), mask)
    assert torch.equal(blind.pooled[0], blind.pooled[1])

    build("vit_mae_pretraining").save_pretrained(tmp_path / "mae")
    assert PatchTeacher.from_pretrained(tmp_path / "mae", teacher_input="masked", layers=None).hidden_sizes == (24,)
    build("vit_mae").save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"lacks .* weights of ViTMAEForPreTraining"):
        PatchTeacher.from_pretrained(tmp_path / "encoder", teacher_input="masked")


@pytest.mark.parametrize(
    ("processor", "mean"),
    [
        ({"image_processor_type": "DINOv3ViTImageProcessor", "image_mean": [0.1] * 3, "image_std": [0.5] * 3}, 0.1),
        ({"image_processor_type": "ViTImageProcessor", "do_normalize": False}, 0.0),
        (None, 0.485),
    ],
)
def test_normalisation_comes_from_the_checkpoint(tmp_path, processor, mean):
    build("dinov3").save_pretrained(tmp_path)
    if processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert PatchTeacher.from_pretrained(tmp_path).image_mean.flatten()[0].item() == pytest.approx(mean)


def test_revision_is_the_hubs_commit_and_every_file_is_taken_from_it(monkeypatch):
    asked = []

    def commit(self, repo_id, revision=None, **kwargs):
        return type("Info", (), {"sha": "a" * 40})

    def config(name, revision=None, **kwargs):
        asked.append(revision)
        raise OSError("stop here")

    monkeypatch.setattr(checkpoint.HfApi, "model_info", commit)
    monkeypatch.setattr(patch_teacher.AutoConfig, "from_pretrained", config)
    with pytest.raises(OSError, match="stop here"):
        PatchTeacher.from_pretrained("someone/vit", revision="main")
    assert asked == ["a" * 40]


def test_without_network_a_cached_teacher_loads_and_knows_its_commit(tmp_path, monkeypatch):
    sha = "0123456789" * 4
    repo = tmp_path / "models--someone--vit"
    build("vit").save_pretrained(repo / "snapshots" / sha)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(sha)

    def unreachable(self, *args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(checkpoint.HfApi, "model_info", unreachable)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    teacher = PatchTeacher.from_pretrained("someone/vit")
    assert (teacher.name_or_path, teacher.revision) == ("someone/vit", sha)


def test_a_gated_teacher_says_where_to_ask(monkeypatch):
    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.") from GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(patch_teacher, "resolve_revision", lambda *args: None)
    monkeypatch.setattr(patch_teacher.AutoConfig, "from_pretrained", gated)
    with pytest.raises(PermissionError, match=r"huggingface.co/meta/dino.*hf auth login"):
        PatchTeacher.from_pretrained("meta/dino")


def test_pickled_weights_are_refused(tmp_path):
    model = build("vit")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no weights as safetensors, .* use_safetensors=False\).save_pretrained\('conv"):
        PatchTeacher.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="python -c .*import AutoModelForImageClassification"):
        ClassifierTeacher.from_pretrained(tmp_path)


def test_the_way_to_convert_pickled_weights_works(tmp_path, monkeypatch):
    build("vit").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError) as caught:
        PatchTeacher.from_pretrained(tmp_path)
    code = re.search('python -c "(.+)"', str(caught.value))[1]
    monkeypatch.chdir(tmp_path)
    exec(code)
    assert PatchTeacher.from_pretrained(tmp_path / "converted").num_parameters() > 0


@pytest.mark.parametrize("kind", ["patches", "classes"])
def test_teachers_of_other_images_than_rgb_are_refused(tmp_path, kind):
    if kind == "patches":
        model = tf.ViTModel(tf.ViTConfig(**VIT, num_channels=1))
    else:
        model = tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_channels=1)
        )
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"takes images of 1 channel\(s\), but is shown RGB ones: choose one with 3"):
        (PatchTeacher if kind == "patches" else ClassifierTeacher).from_pretrained(tmp_path)


def test_students_of_other_images_than_rgb_are_refused():
    with pytest.raises(
        ValueError, match=r"takes images of 4 channel\(s\), but learns from RGB ones: set its num_chan"
    ):
        student_encoder_config({"model_type": "resnet", "num_channels": 4})


@pytest.mark.shared_data
def test_a_real_checkpoint_in_half_precision():
    folder = SHARED / "models" / "vit-small-14-saliency"
    if not folder.exists():
        pytest.skip("../shared/models/vit-small-14-saliency is not here")
    teacher = PatchTeacher.from_pretrained(folder, layers=(6, -1), image_size=98)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert (teacher.grid, teacher.hidden_sizes, teacher.patch_size) == ((7, 7), (384, 384), 14)
    assert teacher.image_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    first, second = teacher(images(98, 98)).pooled
    assert 0 < (first - second).norm() < first.norm()

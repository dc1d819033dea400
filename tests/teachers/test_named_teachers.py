"""Teachers and students by one string."""

import re

import pytest
import torch
import transformers as tf

from hgkd_hf.cli.choices import parse_method
from hgkd_hf.cli.main import main
from hgkd_hf.students.presets import PRESETS, WEIGHTS, student_encoder_config, student_weights
from hgkd_hf.teachers import PatchTeacher
from hgkd_hf.teachers.cnn_teacher import stride_of
from hgkd_hf.teachers.named import TEACHERS, teacher_source

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
SIZES = {"small": SMALL, "s16": SMALL, "base": BASE, "b16": BASE, "large": LARGE, "l16": LARGE}
STAGES = {"tiny": [3, 3, 9, 3], "small": [3, 3, 27, 3], "base": [3, 3, 27, 3], "large": [3, 3, 27, 3]}
WIDTHS = {"tiny": 96, "small": 96, "base": 128, "large": 192}
FAMILIES = {
    "dinov2-registers": lambda size, patch: tf.Dinov2WithRegistersModel(
        tf.Dinov2WithRegistersConfig(**size, patch_size=patch, image_size=518)
    ),
    "dinov2": lambda size, patch: tf.Dinov2Model(tf.Dinov2Config(**size, patch_size=patch, image_size=518)),
    "dinov3": lambda size, patch: tf.DINOv3ViTModel(
        tf.DINOv3ViTConfig(
            **size, intermediate_size=4 * size["hidden_size"], patch_size=patch, num_register_tokens=4, key_bias=False
        )
    ),
    "mae": lambda size, patch: tf.ViTMAEModel(tf.ViTMAEConfig(**size, patch_size=patch)),
    "clip": lambda size, patch: tf.CLIPVisionModel(
        tf.CLIPVisionConfig(**size, intermediate_size=4 * size["hidden_size"], patch_size=patch)
    ),
    "siglip": lambda size, patch: tf.SiglipVisionModel(tf.SiglipVisionConfig(**size, patch_size=patch)),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_table_says_what_the_architecture_is(name):
    teacher = TEACHERS[name]
    if name.startswith("dinov3-convnext"):
        size = name.rpartition("-")[2]
        widths = [WIDTHS[size] * 2**stage for stage in range(4)]
        config = tf.DINOv3ConvNextConfig(depths=STAGES[size], hidden_sizes=widths)
        with torch.device("meta"):
            model = tf.AutoModel.from_config(config)
        assert teacher.parameters == pytest.approx(model.num_parameters() / 1e6, abs=0.05)
        assert stride_of(config, teacher.layers, name) == teacher.patch_size
        assert "not pinned" in teacher.note
        return
    family = next(build for start, build in FAMILIES.items() if name.startswith(start))
    with torch.device("meta"):
        model = family(next(size for end, size in SIZES.items() if name.endswith(end)), teacher.patch_size)
    assert teacher.parameters == pytest.approx(model.num_parameters() / 1e6, abs=0.05)
    assert all(1 <= layer <= model.config.num_hidden_layers for layer in teacher.layers or ())
    assert teacher.commit is None or re.fullmatch("[0-9a-f]{40}", teacher.commit)
    assert teacher.commit is not None or "not pinned" in teacher.note


def test_a_name_is_spelt_out_and_flags_win():
    words = ["--dataset=images", "--teacher=clip-large"]
    settings, _ = parse_method(words)
    named = TEACHERS["clip-large"]
    assert (settings.teacher, settings.teacher_revision) == (named.repo, named.commit)
    assert settings.teacher_layers == [23]
    settings, _ = parse_method(
        [*words, "--teacher_layers", "5", "-1", "--teacher_revision=main", "--target_norm=none"]
    )
    assert (settings.teacher_layers, settings.teacher_revision, settings.target_norm) == ([5, -1], "main", "none")


def test_a_recipe_may_name_one(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: images\nteacher: clip-base\nteacher_layers: [3]\n")
    settings, _ = parse_method(["--recipe", str(recipe)])
    assert (settings.teacher, settings.teacher_layers) == ("openai/clip-vit-base-patch16", [3])


@pytest.mark.parametrize("name", ["facebook/dinov2-base", "some/folder", "/a/folder"])
def test_hub_ids_and_folders_stay_as_they_are(name):
    assert teacher_source(name, "v1") == (name, "v1")
    settings, _ = parse_method(["--dataset=images", f"--teacher={name}"])
    assert (settings.teacher, settings.teacher_layers, settings.teacher_revision) == (name, None, None)


def test_a_folder_of_that_name_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dinov2-small").mkdir()
    assert teacher_source("dinov2-small") == ("dinov2-small", None)
    assert parse_method(["--dataset=images", "--teacher=dinov2-small"])[0].teacher == "dinov2-small"


@pytest.mark.parametrize("ask", [PatchTeacher.from_pretrained, PatchTeacher.patch_size_of, teacher_source])
def test_a_wrong_name_lists_the_nearest(ask):
    with pytest.raises(
        ValueError, match=r"there is no teacher 'dinov2-smal': did you mean dinov2-small or .*\(--teacher\)"
    ):
        ask("dinov2-smal")
    with pytest.raises(ValueError, match="there is no teacher 'zzz': `hgkd teachers` lists"):
        ask("zzz")


def test_a_wrong_student_lists_the_nearest():
    with pytest.raises(ValueError, match="there is no student 'resnet-81': did you mean resnet-18"):
        student_encoder_config("resnet-81")


def test_weights_of_named_students():
    assert WEIGHTS.keys() <= PRESETS.keys()
    assert student_weights("resnet-50")[0] == "microsoft/resnet-50"
    assert student_weights("resnet-50", "main") == ("microsoft/resnet-50", "main")
    assert student_weights("some/cnn", "v1") == ("some/cnn", "v1")
    with pytest.raises(ValueError, match="no weights for student 'resnet-10': leave --student_pretrained out"):
        student_weights("resnet-10")


@pytest.mark.parametrize(("command", "names"), [("teachers", TEACHERS), ("students", PRESETS)])
def test_they_are_listed(command, names, capsys):
    main([command])
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.split()[0] in names] == list(names)
    assert command == "students" or "not measured" in shown

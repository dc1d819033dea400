"""H-GKD from several teachers, the other methods from one, and what recipes, configs and cards say of them."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from contract import SMALL, STUDENT
from transformers import AutoModel, ResNetConfig, ViTConfig, ViTModel

from hgkd_hf import HGKDForPreTraining
from hgkd_hf.checkpoints.identity import check_same_run
from hgkd_hf.cli import distill
from hgkd_hf.cli.choices import parse_method
from hgkd_hf.cli.main import main
from hgkd_hf.cli.recipe import parse_recipe, to_recipe
from hgkd_hf.hub import License, Source, StudentCard, find_source
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.training.teaching import TeachSettings


@pytest.fixture(scope="module")
def vits(tmp_path_factory):
    """Two vision transformers of other widths, patches and licences."""
    folder = tmp_path_factory.mktemp("vits")
    for seed, (name, width, patch, license) in enumerate([("a", 32, 16, "mit"), ("b", 64, 8, "cc-by-nc-4.0")]):
        torch.manual_seed(seed)
        sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        vit = ViTModel(ViTConfig(**sizes, image_size=64, patch_size=patch), add_pooling_layer=False)
        vit.save_pretrained(folder / name)
        (folder / name / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    return [str(folder / name) for name in "ab"]


def hgkd(world, teacher, **settings):
    settings = {"student": json.dumps(STUDENT), "image_size": 64, **SMALL["hgkd"], **settings}
    return METHODS["hgkd"](method="hgkd", dataset=str(world / "images"), teacher=teacher, **settings)


def test_every_teacher_weighs_the_same(world, vits):
    """The loss of two teachers is the mean of what each costs the same student, though one is twice as wide."""
    model = hgkd(world, vits).build_model()
    output = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert [prediction.shape[1] for prediction in output.feature_predictions] == [32, 64]
    pairs = zip(output.feature_predictions, output.feature_targets)
    costs = [
        (1 - torch.cosine_similarity(ours, theirs, dim=1)).mean() + torch.nn.functional.smooth_l1_loss(ours, theirs)
        for ours, theirs in pairs
    ]
    torch.testing.assert_close(output.loss, sum(costs) / 2)
    alone = hgkd(world, vits[1]).build_model()
    mine, theirs = (m.teach(torch.zeros(2, 3, 64, 64)).feature_maps[-1] for m in (model, alone))
    torch.testing.assert_close(mine, torch.nn.functional.avg_pool2d(theirs, 2))


def test_each_teacher_has_the_default_layers_of_its_kind(world, vits, tmp_path):
    cnn = ResNetConfig(hidden_sizes=[8, 16, 24], depths=[1, 1, 1], embedding_size=8, layer_type="basic")
    AutoModel.from_config(cnn).save_pretrained(tmp_path / "cnn")
    model = hgkd(world, [vits[0], str(tmp_path / "cnn")]).build_model()
    assert [teacher.layers for teacher in model.teacher.teachers] == [(0,), (-1,)]
    assert list(model.config.teacher_layers) == [0, -1]


def test_config_names_all_and_loads_again(world, vits, tmp_path):
    model = hgkd(world, vits).build_model()
    assert model.config.teacher_name_or_path == vits
    assert model.config.teacher_revision == [None, None]
    model.save_pretrained(tmp_path)
    loaded = HGKDForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.teacher_name_or_path == vits
    assert loaded.config.teacher_image_size == [[64, 64], [64, 64]]
    loaded.attach_teacher(model.teacher)
    with pytest.raises(ValueError, match="hidden_sizes"):
        loaded.attach_teacher(hgkd(world, vits[0]).build_model().teacher)


@pytest.mark.parametrize("wanted", [["a", "a"], ["b", "a"], ["a"]])
def test_identity_notices_other_teachers(world, vits, tmp_path, wanted):
    before, now = (hgkd(world, names) for names in (vits, [vits["ab".index(name)] for name in wanted]))
    check_same_run(tmp_path, before.identity(before.build_model()), resume=False, write=True)
    with pytest.raises(ValueError, match="teacher_weights was"):
        check_same_run(tmp_path, now.identity(now.build_model()), resume=True, write=False)


def test_dry_run_and_description_tell_all(world, vits, tmp_path, capsys):
    settings = {"dataset": world / "images", "student": json.dumps(STUDENT), "image_size": 64, "decoder_width": 32}
    settings |= {"per_device_train_batch_size": 4, "output_dir": tmp_path / "run", "report_to": "none"}
    words = [f"--{name}={value}" for name, value in settings.items()]
    distill.main([*words, "--teacher", *vits, "--dry_run"])
    recipe, _, plan = capsys.readouterr().out.partition("\n\n")
    assert yaml.safe_load(recipe)["teacher"] == vits
    assert all(re.search(rf"{name}, 0\.\d M parameters, layers 0 at 64x64 px", plan) for name in vits)


@pytest.mark.parametrize("given", ["vit", ["vit"], ["vit", "other/vit"]])
def test_recipes_hold_one_or_several(tmp_path, given):
    """A recipe with one string, as all were, and one with a list; what is written is read again."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"dataset": "images", "teacher": [f"a/{name}" for name in given]}))
    if isinstance(given, str):
        recipe.write_text("dataset: images\nteacher: a/vit\nteacher_revision: v1\n")
    method, training = parse_method(["--recipe", str(recipe)])
    several = isinstance(given, list) and len(given) > 1
    assert method.teacher == (["a/vit", "a/other/vit"] if several else "a/vit")
    recipe.write_text(to_recipe(method, training))
    again, _ = parse_method(["--recipe", str(recipe)])
    assert (again.teacher, again.teacher_revision) == (method.teacher, method.teacher_revision)


def test_names_of_several_are_spelt_out():
    method, _ = parse_method(["--dataset=images", "--teacher", "dinov2-small", "some/vit", "dinov2-base"])
    assert method.teacher == ["facebook/dinov2-small", "some/vit", "facebook/dinov2-base"]
    assert [revision[:4] for revision in method.teacher_revision] == ["ed25", "main", "f9e4"]
    method, _ = parse_method(["--dataset=images", "--teacher", "dinov2-small", "clip-base", "--teacher_layers", "9"])
    assert method.teacher_layers == [9]


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.several_teachers is None])
def test_other_methods_take_one(name):
    with pytest.raises(ValueError, match=f"method '{name}' learns from one teacher, but --teacher names 2: name one"):
        parse_method([f"--method={name}", "--dataset=images", "--teacher", "a/x", "b/y"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            ["--teacher", "a/x", "b/y", "--teacher_revision", "v1"],
            r"names 1 revision\(s\), but --teacher 2 teacher\(s\)",
        ),
        (
            ["--teacher", "a/x", "--teacher_revision", "v1", "v2"],
            r"names 2 revision\(s\), but --teacher 1 teacher\(s\)",
        ),
        (["--teacher", "clip-base", "dinov2-small"], "differ in their default of teacher_layers: give one for all"),
    ],
)
def test_what_does_not_go_together_is_refused(words, match):
    with pytest.raises(ValueError, match=match):
        parse_method(["--dataset=images", *words])


def test_a_cache_holds_what_one_saw(tmp_path):
    with pytest.raises(ValueError, match="a cache holds what one teacher saw, but --teacher names 2"):
        parse_recipe((TeachSettings,), ["--dataset=images", "--teacher", "a/x", "b/y"], command="teach")
    with pytest.raises(ValueError, match="teacher_cache 'c' holds what one teacher saw, but --teacher names 2"):
        METHODS["hgkd"](dataset="images", teacher=["a/x", "b/y"], teacher_cache="c")


def test_the_card_names_all_with_their_licences(vits):
    card = StudentCard(name="x", method="hgkd", teachers=[find_source(name, "model") for name in vits])
    card.dataset = Source("dots", license=License("mit"))
    card.settle_license()
    assert card.license == License("cc-by-nc-4.0")
    text = card.render()
    assert "from the teachers `a` and `b`" in text
    assert "`a` is under mit" in text
    assert "`b` is under cc-by-nc-4.0" in text
    published = replace(card, teachers=[Source(f"alice/{name}", True, name * 40) for name in "ab"])
    metadata = published.metadata()
    assert {"teacher:alice/a", "teacher:alice/b"} <= set(metadata["tags"])
    assert metadata["distillation"]["teacher"] == ["alice/a", "alice/b"]
    assert metadata["distillation"]["teacher_revision"] == ["a" * 40, "b" * 40]
    assert StudentCard.from_dict(published.to_dict()) == published


def test_a_card_of_one_teacher_is_read():
    old = {"name": "x", "teacher": {"name": "alice/a", "on_hub": True, "license": {"id": "mit"}}}
    assert StudentCard.from_dict(old).teachers == [Source("alice/a", on_hub=True, license=License("mit"))]


def test_a_run_of_several_is_published(world, vits, tmp_path, capsys):
    """The recipe and the config that leave the machine name no place on it."""
    settings = {"dataset": world / "images", "student": json.dumps(STUDENT), "image_size": 64, "decoder_width": 32}
    settings |= {"per_device_train_batch_size": 4, "max_steps": 1, "output_dir": tmp_path / "run"}
    words = [f"--{name}={value}" for name, value in settings.items()]
    main(["distill", *words, "--teacher", *vits, "--report_to=none", "--license=mit", "--disable_tqdm=true"])
    capsys.readouterr()
    student = tmp_path / "run" / "student"
    assert yaml.safe_load((student / "recipe.yaml").read_text())["teacher"] == ["a", "b"]
    assert [teacher.name for teacher in StudentCard.load(student / "card.json").teachers] == ["a", "b"]
    for path in [*student.rglob("*.json"), *student.rglob("*.md"), *student.rglob("*.yaml")]:
        assert vits[0] not in path.read_text(), path
    assert vits[0] not in (tmp_path / "run" / "report.html").read_text()

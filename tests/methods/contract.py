"""What every method promises, as checks that tests run over all methods and the one of the docs."""

import copy
import json
import random
from dataclasses import MISSING, fields

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from hgkd_hf.cli.choices import parse_method
from hgkd_hf.cli.recipe import to_recipe
from hgkd_hf.data import ImageLoader
from hgkd_hf.methods.base.distiller import Distiller
from hgkd_hf.methods.base.settings import SettingHelp, choices_of, hints_of
from hgkd_hf.students.features import pooled_features

STUDENT = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
STUDENT |= {"layer_type": "basic"}
# What makes a method small; the other settings are its defaults.
REGISTERS = {"model_type": "dinov2_with_registers", "hidden_size": 32, "num_hidden_layers": 2, "patch_size": 16}
REGISTERS |= {"num_attention_heads": 2, "num_register_tokens": 2}
SMALL = {
    "coadvise": {"student": json.dumps(REGISTERS)},
    "hgkd": {"decoder_width": 32},
    "rcmae": {"decoder_width": 32},
    "rob": {
        "num_prototypes": 6,
        "prototype_samples": 8,
        "head_hidden_size": 24,
        "global_crops": 2,
        "local_crops": 2,
        "local_crop_size": 32,
    },
}


TEACHERS = {"coadvise": 2}  # of methods that take another number than one


def settings_of(name, world):
    """A method's small settings, with its teachers and its images, of which `world` is the folder."""
    teachers = [str(world / "classifier")] * TEACHERS.get(name, 1)
    settings = {"method": name, "dataset": str(world / "images"), "image_size": 64, "student": json.dumps(STUDENT)}
    return settings | {"teacher": teachers if len(teachers) > 1 else teachers[0]} | SMALL.get(name, {})


class Built:
    """A method with small settings, its model with the teacher attached, and a batch of its samples."""

    def __init__(self, kind, name, world):
        torch.manual_seed(0)
        self.method = kind(**settings_of(name, world))
        self.model = self.method.build_model()
        self.method.prepare(self.model, seed=0)
        data = self.method.training_data(self.model, seed=0, skipped_log=None)
        self.batch = next(iter(ImageLoader(data, batch_size=4)))
        self.batch.pop("sample_index", None)
        self.images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def check_model_and_teacher(built, tmp_path):
    model = built.model
    assert isinstance(model, Distiller)
    if not built.method.needs_teacher:
        assert model.teacher is None
        assert model.config.teacher_name_or_path is None
        return
    assert model.teacher.name_or_path == model.config.teacher_name_or_path
    assert not any(module.training for module in model.train().teacher.modules())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    parts = {id(value) for value in model.teacher.parameters()}
    assert parts.isdisjoint(id(value) for value in model.parameters())
    assert model.encoder.num_parameters() > 0


def check_loss_comes_first_and_terms_are_named(built, tmp_path):
    output = built.model.train()(**built.batch)
    assert next(iter(output)) == "loss"
    assert output.loss.dim() == 0
    assert output.loss.requires_grad
    terms = {name: value for name, value in output.items() if torch.is_tensor(value) and value.dim() == 0}
    assert len(terms) > 1
    assert all(value.isfinite() for value in terms.values())
    described = {item.name for item in fields(output)}
    assert set(terms) <= described


def check_gradients_reach_the_student_alone(built, tmp_path):
    built.model.zero_grad()
    built.model.train()(**built.batch).loss.backward()
    assert [name for name, p in built.model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in built.model.student.parameters() if p.requires_grad)
    if built.method.needs_teacher:
        assert all(p.grad is None for p in built.model.teacher.parameters())


def check_features_and_logits(built, tmp_path):
    model = built.model.eval()
    with torch.no_grad():
        features = model.image_features(built.images)
        assert features.shape == (2, STUDENT["hidden_sizes"][-1])
        native = model.to_native()
        torch.testing.assert_close(features, pooled_features(native.base_model, built.images))
        if model.classifies:
            torch.testing.assert_close(model.image_logits(built.images), native(built.images).logits)
        else:
            with pytest.raises(NotImplementedError, match="has no classifier"):
                model.image_logits(built.images)


def check_the_native_student_is_stock(built, tmp_path):
    native = built.model.to_native()
    assert type(native).__module__.startswith("transformers.")
    assert not native.training
    native.save_pretrained(tmp_path)
    kind = AutoModelForImageClassification if built.model.classifies else AutoModel
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(native)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in native.state_dict().items())
    if built.model.extended_student is not None:
        assert built.model.extended_student.num_parameters() > native.num_parameters()


def check_saved_and_loaded(built, tmp_path):
    model = built.model.eval()
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    owned = {name.replace("teacher_projection", "") for name in loaded.state_dict()}
    assert not any("teacher" in name for name in owned)
    once, again = (json.loads(json.dumps(config.to_dict(), default=str)) for config in (model.config, loaded.config))
    for name in {*once, *again} - {"_name_or_path", "student_config"}:
        assert again[name] == once[name], name
    assert again["student_config"]["model_type"] == once["student_config"]["model_type"]
    assert loaded.config.student_config.id2label == model.config.student_config.id2label
    for run_time in ("sparse_backend", "device"):
        assert run_time not in (tmp_path / "config.json").read_text()
    assert loaded.teacher is None
    if built.method.needs_teacher:
        with pytest.raises(RuntimeError, match=r"has no teacher: attach one with model.attach_teacher"):
            loaded(**built.batch)
        loaded.attach_teacher(model.teacher)
    loaded.eval()
    losses = []
    for one in (model, loaded):
        torch.manual_seed(0)
        random.seed(0)
        with torch.no_grad():
            losses.append(one(**built.batch).loss)
    torch.testing.assert_close(*losses)


def check_defaults_are_one(built, tmp_path):
    """Of a method's settings, of its config and on the command line; None is settled by other settings."""
    kind, config = type(built.method), built.model.config_class
    parsed, _ = parse_method(["--dataset", "images", "--method", built.method.method])
    assert type(parsed) is kind
    of_config = {item.name: item for item in fields(config)}
    for item in fields(kind):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if default not in (MISSING, None) and item.name != "method":
            assert getattr(parsed, item.name) == default, item.name
        if item.name in built.method.config_settings() and item.name != "teacher_layers":
            assert of_config[item.name].default == item.default, item.name
            assert of_config[item.name].metadata.get("help", "") in ("", item.metadata["help"]), item.name


def check_limits(built, tmp_path):
    """A value beyond a limit or none of the choices is refused in a sentence that names the flag."""
    hints = hints_of(type(built.method))
    for item in fields(built.method):
        help = item.metadata["help"]
        assert isinstance(help, SettingHelp)
        assert help, item.name
        assert help.endswith("."), item.name
        wrong = {"minimum": -1, "above": 0, "maximum": 1, "below": 0}
        beyond = [limit + wrong[kind] for kind, limit in help.limits.items()] if help.limits else []
        beyond += [float("nan")] if beyond else []
        beyond += ["none of them"] if choices_of(hints[item.name]) else []
        for value in beyond:
            broken = copy.copy(built.method)
            old = getattr(broken, item.name)
            setattr(broken, item.name, [value] * len(old) if isinstance(old, list) else value)
            with pytest.raises(ValueError, match=rf"^{item.name} is .*\(--{item.name}\)\.$"):
                broken.check()
            if item.name in built.method.config_settings() and item.name != "image_size":
                with pytest.raises(ValueError, match=rf"^{item.name} is .*\(--{item.name}\)\.$"):
                    built.model.config_class(**{item.name: value})


def check_the_students_config_is_left_alone(built, tmp_path):
    config = built.method.student_config()
    before = config.to_json_string()
    kind, settings = built.model.config_class, built.method.config_settings()
    if built.method.needs_teacher:
        kind.for_teacher(built.model.teacher, config, **settings)
    else:
        kind(student_config=config, **settings)
    assert config.to_json_string() == before


def check_recipe_and_identity(built, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_recipe(built.method))
    again, _ = parse_method(["--recipe", str(recipe)])
    assert again == built.method
    identity = json.loads(json.dumps(built.method.identity(built.model)))
    assert bool(identity["teacher_weights"]) == built.method.needs_teacher
    assert identity["rows"] == 8
    assert identity.keys() >= built.method.config_settings().keys()
    # A run of before a setting existed is known to have done what the setting says of it.
    assert built.method.earlier().keys() == identity.keys() - {"rows", "images", "teacher_weights"}


def check_description(built, tmp_path):
    rows = built.method.describe(built.model)
    assert all(isinstance(value, str) and value for value in rows.values())
    assert list(rows)[:2] == ["student", "teacher"]
    assert rows.keys() >= {"objective", "data"}
    assert type(built.model.encoder).__name__.removesuffix("Model") in rows["student"]
    assert ("classifier" if built.method.needs_teacher else "needs none") in rows["teacher"]
    assert built.method.title == built.model.config.title


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]

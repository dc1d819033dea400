import json

import pytest
import torch
from contract import REGISTERS, settings_of
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    Dinov2WithRegistersConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hgkd_hf import ClassifierTeacher, PatchTeacher
from hgkd_hf.methods.coadvise.method import CoAdviseMethod
from hgkd_hf.methods.coadvise.modeling import CoAdviseConfig, CoAdviseForImageClassification
from hgkd_hf.teachers import SeveralClassifiers
from hgkd_hf.teachers.showing import show

CLASSES = {0: "cat", 1: "dog", 2: "owl"}
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 16}
STUDENT = {name: value for name, value in REGISTERS.items() if name != "model_type"} | {"image_size": 64}


def student(**settings) -> Dinov2WithRegistersConfig:
    return Dinov2WithRegistersConfig(**STUDENT | {"id2label": CLASSES} | settings)


def cnn(classes=CLASSES) -> ClassifierTeacher:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, id2label=classes))
    torch.nn.init.normal_(model.classifier[1].weight)
    return ClassifierTeacher(model, name_or_path="cnn")


def vit(classes=CLASSES, image_size=32) -> ClassifierTeacher:
    model = ViTForImageClassification(ViTConfig(**VIT, image_size=image_size, id2label=classes))
    torch.nn.init.normal_(model.classifier.weight)
    return ClassifierTeacher(model, name_or_path="vit", image_mean=(0.1, 0.2, 0.3))


def build(*teachers, **fields) -> CoAdviseForImageClassification:
    torch.manual_seed(1)
    teacher = SeveralClassifiers(teachers or (cnn(), vit()))
    model = CoAdviseForImageClassification(CoAdviseConfig.for_teacher(teacher, student(), **fields))
    return model.attach_teacher(teacher)


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 64, 64, generator=generator), torch.tensor([0, 1, 2, 1])


def test_loss_by_hand():
    """The class token with the labels, the first register with the first teacher, the second with the other."""
    model = build(distillation_weight=0.5, temperature=2.0).eval()
    pixel_values, labels = batch()
    output = model(pixel_values, labels)
    tokens = model.student.base_model(pixel_values).last_hidden_state
    said = [model.student(pixel_values).logits, model.heads[0](tokens[:, 1]), model.heads[1](tokens[:, 2])]
    torch.testing.assert_close(output.label_loss, F.cross_entropy(said[0], labels))
    for term, ours, teacher in zip((output.first_loss, output.second_loss), said[1:], model.teacher.teachers):
        theirs = show(teacher, pixel_values, model.config.image_mean, model.config.image_std).logits
        kl = ((theirs / 2).softmax(1) * ((theirs / 2).log_softmax(1) - (ours / 2).log_softmax(1))).sum(1).mean() * 4
        torch.testing.assert_close(term, kl)
    torch.testing.assert_close(output.loss, output.label_loss + 0.5 * (output.first_loss + output.second_loss))
    torch.testing.assert_close(output.logits, sum(said) / 3)


def test_the_tokens_begin_apart():
    first, second = build().student.base_model.embeddings.register_tokens[0]
    assert (first - second).abs().max() > 1e-3


def test_no_token_is_lost_in_the_stock_student(tmp_path):
    model = build().eval()
    model.to_native().save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    pixel_values, _ = batch()
    ours, theirs = (m.base_model(pixel_values).last_hidden_state for m in (model.student, loaded.eval()))
    torch.testing.assert_close(ours[:, :3], theirs[:, :3])
    torch.testing.assert_close(model.image_logits(pixel_values), loaded(pixel_values).logits)


def test_more_registers_than_teachers_are_left_as_they_are():
    teacher = SeveralClassifiers([cnn(), vit()])
    config = CoAdviseConfig.for_teacher(teacher, student(num_register_tokens=4))
    output = CoAdviseForImageClassification(config).attach_teacher(teacher)(*batch())
    assert output.loss.isfinite()


@pytest.mark.parametrize("config", [student(num_register_tokens=1), ViTConfig(**VIT, image_size=64)], ids=str)
def test_a_student_without_two_registers_is_refused(config):
    with pytest.raises(ValueError, match=r"needs a student with 2 or more register tokens.* \(--student\)"):
        CoAdviseConfig.for_teacher(SeveralClassifiers([cnn(), vit()]), config)


def test_teachers_that_do_not_fit():
    patches = PatchTeacher(ViTModel(ViTConfig(**VIT, image_size=64), add_pooling_layer=False), name_or_path="patches")
    with pytest.raises(
        ValueError, match="logits with those of 'patches', but the teacher 'patches' has no classifier"
    ):
        build(cnn(), patches)
    with pytest.raises(ValueError, match="with those of 'vit', but the student has the classes 'cat', 'dog'"):
        build(cnn(), vit({0: "bus", 1: "car", 2: "van"}))
    with pytest.raises(ValueError, match="with those of 'vit', but the teacher does not know 'owl'"):
        build(cnn(), vit({0: "cat", 1: "dog"}))
    with pytest.raises(ValueError, match="learns from 2 teachers at once, but was given"):
        build(cnn(), vit(), cnn())
    with pytest.raises(ValueError, match="learns from 2 teachers at once, but was given 'cnn'"):
        build().attach_teacher(cnn())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_teachers_is_refused(count, world):
    settings = settings_of("coadvise", world) | {"teacher": [str(world / "classifier")] * count}
    with pytest.raises(
        ValueError, match=rf"learns from 2 teachers, but --teacher names {count}: name two classifiers"
    ):
        CoAdviseMethod(**settings).build_model()


def test_a_cache_is_refused():
    with pytest.raises(ValueError, match="which no cache holds: leave --teacher_cache out"):
        CoAdviseMethod(dataset="images", teacher_cache="c")


def test_teachers_answer_in_the_students_classes():
    """By their names, each in its own order."""
    turned = {0: "owl", 1: "cat", 2: "dog"}
    teacher = vit(turned)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    alone = teacher(images).logits
    model = build(cnn(), teacher)
    torch.testing.assert_close(model.teacher(images).logits[1], alone[:, [1, 2, 0]])


def test_describes_both(world):
    method = CoAdviseMethod(**settings_of("coadvise", world))
    rows = method.describe(method.build_model())
    assert rows["teacher"].count("classifier, ") == 2
    assert json.loads(method.student)["model_type"] == "dinov2_with_registers"

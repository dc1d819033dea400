import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    Dinov2Config,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hgkd_hf import PatchTeacher
from hgkd_hf.methods.kd.modeling import KDConfig, KDForImageClassification
from hgkd_hf.objectives.decoupled import decoupled_distillation_loss
from hgkd_hf.teachers import ClassifierTeacher

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT |= {"image_size": 64, "patch_size": 16, "num_labels": 3}
CNN = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "layer_type": "basic", "num_labels": 3}
OBJECTIVES = ["labels", "kd", "dkd", "hint", "contrastive"]


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 64, 64, generator=generator), torch.arange(size) % 3


@pytest.fixture
def teacher() -> ClassifierTeacher:
    torch.manual_seed(2)
    model = ViTForImageClassification(ViTConfig(**VIT))
    torch.nn.init.normal_(model.classifier.weight)
    return ClassifierTeacher(model, name_or_path="tiny-vit")


def build(teacher, student=None, **fields) -> KDForImageClassification:
    torch.manual_seed(1)
    config = KDConfig.for_teacher(teacher, student or ResNetConfig(**CNN), **fields)
    return KDForImageClassification(config).attach_teacher(teacher)


def seen(model, pixel_values):
    """What the teacher makes of images that were normalised for the student."""
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    return model.teacher((pixel_values * std + mean).clamp(0, 1))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_by_hand(teacher, objective):
    model = build(teacher, objective=objective, label_weight=0.5, distillation_weight=2.0).eval()
    pixel_values, labels = batch()
    output, target = model(pixel_values, labels), seen(model, pixel_values)
    feature_map = model.student.resnet(pixel_values).last_hidden_state  # 4x4, as the teacher's patches
    label_loss = F.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.label_loss, label_loss)
    if objective == "labels":
        assert output.distillation_loss is None
        torch.testing.assert_close(output.loss, 0.5 * label_loss)
        return
    if objective == "kd":
        theirs, ours = ((logits / 4).log_softmax(1) for logits in (target.logits, output.logits))
        expected = 16 * (theirs.exp() * (theirs - ours)).sum(1).mean()
    elif objective == "dkd":
        expected = decoupled_distillation_loss(output.logits, target.logits, labels)["loss"]
    elif objective == "hint":
        small = F.interpolate(feature_map, (4, 4), mode="bilinear", antialias=True)
        expected = (model.hint.regressor(small) - target.feature_maps[0]).square().mean()
    else:
        ours = F.normalize(model.contrastive.student_projection(feature_map.mean((2, 3))), dim=1)
        theirs = F.normalize(model.contrastive.teacher_projection(target.feature_maps[0].mean((2, 3))), dim=1)
        cosines, own = ours @ theirs.T / 0.07, torch.arange(6)
        expected = F.cross_entropy(cosines, own) + F.cross_entropy(cosines.T, own)
    torch.testing.assert_close(output.distillation_loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, 0.5 * label_loss + 2 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        ("dkd", {"target_class": 2.0, "other_classes": 3.0}),
        ("contrastive", {"student_to_teacher": 1.0, "teacher_to_student": 1.0}),
    ],
)
def test_parts_of_an_objective_are_named_terms(teacher, objective, parts):
    model = build(teacher, objective=objective, target_class_weight=2.0, other_classes_weight=3.0)
    output = model(*batch())
    scalars = {name for name, value in output.items() if value.dim() == 0}
    assert scalars == {"loss", "label_loss", "distillation_loss", *parts}
    total = sum(weight * output[name] for name, weight in parts.items())
    torch.testing.assert_close(output.distillation_loss, total)


@pytest.mark.parametrize("objective", ["kd", "dkd"])
def test_standardized_logits_by_hand(teacher, objective):
    """z = (logits - their mean) / their deviation over the classes, so that scale and shift do not matter."""
    model = build(teacher, objective=objective, standardize_logits=True, temperature=2.0).eval()
    pixel_values, labels = batch()
    output, target = model(pixel_values, labels), seen(model, pixel_values)

    def z(logits, scale=1.0, shift=0.0):
        logits = scale * logits + shift
        return (logits - logits.mean(1, keepdim=True)) / logits.std(1, correction=0, keepdim=True)

    theirs, ours = z(target.logits, 7.0, 3.0), z(output.logits)
    expected = (
        4 * ((theirs / 2).softmax(1) * ((theirs / 2).log_softmax(1) - (ours / 2).log_softmax(1))).sum(1).mean()
        if objective == "kd"
        else decoupled_distillation_loss(ours, theirs, labels, temperature=2.0)["loss"]
    )
    torch.testing.assert_close(output.distillation_loss, expected, rtol=1e-4, atol=1e-5)


def test_description_names_every_weight(teacher):
    model = build(teacher, objective="dkd", target_class_weight=2.0, other_classes_weight=3.0)
    assert model.describe_objective()["objective"].endswith("(DKD) 1, T 4, target class 2, others 3")
    assert build(teacher, objective="labels").describe_objective() == {"objective": "labels alone"}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("student", [ResNetConfig(**CNN), ViTConfig(**VIT), Dinov2Config(**VIT)])
def test_gradients_reach_every_parameter_and_the_teacher_stays_outside(teacher, student, objective, tmp_path):
    model = build(teacher, student, objective=objective)
    calls = []
    with teacher.register_forward_hook(lambda module, args, output: calls.append(len(args[0]))):
        model(*batch()).loss.backward()
    assert calls == ([] if objective == "labels" else [6])
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in teacher.parameters())
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is KDForImageClassification
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not any("teacher" in name.replace("teacher_projection", "") for name in loaded.state_dict())


def test_soft_labels(teacher):
    model = build(teacher).eval()
    pixel_values, labels = batch()
    one, other = model(pixel_values, labels), model(pixel_values, F.one_hot(labels, 3).float())
    torch.testing.assert_close(one.loss, other.loss)
    unlabelled = build(teacher, label_weight=0.0).eval()(pixel_values)
    torch.testing.assert_close(unlabelled.loss, unlabelled.distillation_loss)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"objective": "crd"}, "objective is 'crd': choose one of labels, kd, dkd, hint, contrastive"),
        ({"label_weight": -1.0}, "label_weight is -1.0, but it must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0, but it must be above 0"),
        ({"student_layer": 4}, r"student_layer is 4, but the student \(resnet\) has 1 to 3, and -1"),
        ({"objective": "labels", "label_weight": 0.0}, "objective 'labels' .* leaves nothing to learn"),
        ({"label_weight": 0.0, "distillation_weight": 0.0}, "leaves nothing to learn: raise one of the weights"),
        (
            {"objective": "hint", "standardize_logits": True},
            "'hint' compares no logits: leave --standardize_logits",
        ),
    ],
)
def test_bad_config(teacher, fields, match):
    with pytest.raises(ValueError, match=match):
        build(teacher, **fields)


def test_what_does_not_fit(teacher, vit):
    patches = PatchTeacher(vit, name_or_path="tiny-patches")
    with pytest.raises(ValueError, match="objective is 'kd', but the teacher 'tiny-patches' has no classifier"):
        build(patches)
    assert build(patches, objective="hint")(*batch()).loss.isfinite()
    five = ResNetForImageClassification(ResNetConfig(**CNN | {"num_labels": 5}))
    with pytest.raises(ValueError, match="but the student has 3 classes and the teacher 5, and not both name them"):
        build(ClassifierTeacher(five, image_size=64))
    with pytest.raises(ValueError, match=r"hidden_sizes is 24, but this model was built for 32 \(teacher_hidden_size"):
        build(teacher, objective="hint").attach_teacher(ClassifierTeacher(five, image_size=64))
    with pytest.raises(ValueError, match="'hint' needs teacher_hidden_size"):
        KDForImageClassification(KDConfig(student_config=ResNetConfig(**CNN), objective="hint"))
    with pytest.raises(ValueError, match=r"labels \(6, 3\) must be \(B,\) with objective 'dkd'"):
        build(teacher, objective="dkd")(batch()[0], F.one_hot(batch()[1], 3).float())
    with pytest.raises(ValueError, match="labels None must be"):
        build(teacher)(batch()[0])

import pytest
import torch
from tiny_cnns import CNN, batch, cnn_teacher
from torch.nn import functional as F
from transformers import ResNetConfig, ViTConfig, ViTModel

from hgkd_hf import ClassifierTeacher, PatchTeacher
from hgkd_hf.methods.reviewkd.modeling import ReviewKDConfig, ReviewKDForImageClassification
from hgkd_hf.objectives.review import hierarchical_context_loss
from hgkd_hf.teachers.showing import show


@pytest.fixture
def teacher() -> ClassifierTeacher:
    return cnn_teacher(layers=(1, 2, 3))


def build(teacher, **fields) -> ReviewKDForImageClassification:
    torch.manual_seed(1)
    config = ReviewKDConfig.for_teacher(teacher, ResNetConfig(**CNN), **{"student_layers": (1, 2, 3)} | fields)
    return ReviewKDForImageClassification(config).attach_teacher(teacher)


def test_loss_by_hand(teacher):
    model = build(teacher, review_weight=3.0).eval()
    pixel_values, labels = batch()
    output = model(pixel_values, labels)
    maps = model.student.resnet(pixel_values, output_hidden_states=True).hidden_states[1:]
    targets = show(teacher, pixel_values, model.config.image_mean, model.config.image_std).feature_maps
    levels = model.review(maps, targets)
    assert [ours.shape[1] for ours, _ in levels] == [16, 20, 32, 32]
    review = sum(hierarchical_context_loss(*level) for level in levels)
    torch.testing.assert_close(output.review, review)
    torch.testing.assert_close(output.label_loss, F.cross_entropy(output.logits, labels))
    torch.testing.assert_close(output.loss, output.label_loss + 3 * review)


@pytest.mark.parametrize(("share", "ramps"), [(0.0, [1, 1, 1]), (0.5, [0, 0.5, 1])])
def test_the_review_warms_up(teacher, share, ramps):
    model = build(teacher, warmup_share=share).eval()
    for model.progress, ramp in zip((0.0, 0.25, 0.75), ramps):
        output = model(*batch())
        assert output.ramp.item() == ramp
        torch.testing.assert_close(output.loss, output.label_loss + ramp * output.review)


def test_a_vision_transformer_teaches_levels_of_one_size():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vit = ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16), add_pooling_layer=False)
    model = build(PatchTeacher(vit, layers=(1, 2), name_or_path="tiny-vit"), student_layers=(2, 3))
    model(*batch()).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"student_layers": (1, 2)}, r"student_layers \(1, 2\) and teacher_layers \(1, 2, 3\) are paired one by one"),
        ({"student_layers": (1, 2, 4)}, "student_layers names layer 4, but the student .* has 1 to 3, and -1"),
        ({"student_layers": (3, 2, 1)}, r"are \(3, 2, 1\), with maps of \[16, 8, 4\] .* the finest must come first"),
        ({"review_weight": -1.0}, "review_weight is -1.0, but it must be at least 0"),
        ({"warmup_share": 2.0}, "warmup_share is 2.0, but it must be at least 0 and at most 1"),
    ],
)
def test_bad_config(teacher, fields, match):
    with pytest.raises(ValueError, match=match):
        build(teacher, **fields)


def test_another_teacher(teacher):
    model = build(teacher)
    other = ClassifierTeacher(teacher.model, layers=(1, 2), name_or_path="two-maps")
    with pytest.raises(ValueError, match=r"hidden_sizes are \(16, 20\), but this model was built for \(16, 20, 32\)"):
        model.attach_teacher(other)
    with pytest.raises(ValueError, match="build the config with ReviewKDConfig.for_teacher"):
        ReviewKDForImageClassification(ReviewKDConfig(student_config=ResNetConfig(**CNN)))
    with pytest.raises(ValueError, match="labels None must be"):
        model(batch()[0])

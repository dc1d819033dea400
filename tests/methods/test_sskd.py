import pytest
import torch
from tiny_cnns import CNN, batch, cnn_teacher
from torch.nn import functional as F
from transformers import ResNetConfig, ViTConfig, ViTModel

from hgkd_hf import ClassifierTeacher, PatchTeacher
from hgkd_hf.methods.sskd.modeling import SSKDConfig, SSKDForImageClassification
from hgkd_hf.objectives.self_supervision import similarity_loss, view_similarities
from hgkd_hf.teachers.showing import show


@pytest.fixture
def teacher() -> ClassifierTeacher:
    return cnn_teacher()


def build(teacher, **fields) -> SSKDForImageClassification:
    torch.manual_seed(1)
    return SSKDForImageClassification(SSKDConfig.for_teacher(teacher, ResNetConfig(**CNN), **fields)).attach_teacher(
        teacher
    )


def test_loss_by_hand(teacher):
    model = build(teacher, temperature=2.0, similarity_temperature=0.2, wrong_share=0.5).eval()
    pixel_values, labels = batch()
    output = model(pixel_values, labels)
    views = torch.cat([pixel_values, *(pixel_values.rot90(quarters, (2, 3)) for quarters in (1, 2, 3))])
    target = show(teacher, views, model.config.image_mean, model.config.image_std)
    logits = model.student(views).logits
    divergence = (
        ((target.logits / 2).softmax(1) * ((target.logits / 2).log_softmax(1) - (logits / 2).log_softmax(1))).sum(1)
    ) * 4
    features = model.head(model.student.resnet(views).last_hidden_state.mean((2, 3)))
    torch.testing.assert_close(output.logits, logits[:4])
    torch.testing.assert_close(output.label_loss, F.cross_entropy(logits[:4], labels))
    torch.testing.assert_close(output.distillation_loss, divergence[:4].mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.turned_loss, divergence[4:].mean(), rtol=1e-4, atol=1e-5)
    similarities = (view_similarities(x) for x in (features, target.feature_maps[0].mean((2, 3))))
    torch.testing.assert_close(output.similarity_loss, similarity_loss(*similarities, 0.2, 0.5))
    weighted = 0.1 * output.label_loss + 0.9 * output.distillation_loss + 2.7 * output.turned_loss
    torch.testing.assert_close(output.loss, weighted + 10 * output.similarity_loss)


def test_soft_labels(teacher):
    model = build(teacher).eval()
    pixel_values, labels = batch()
    one, other = model(pixel_values, labels), model(pixel_values, F.one_hot(labels, 3).float())
    torch.testing.assert_close(one.loss, other.loss)


def test_what_does_not_fit(teacher):
    with pytest.raises(ValueError, match="wrong_share is 1.5, but it must be at least 0 and at most 1"):
        build(teacher, wrong_share=1.5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vit = ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16), add_pooling_layer=False)
    with pytest.raises(ValueError, match="SSKD compares logits, but the teacher 'patches' has no classifier"):
        build(PatchTeacher(vit, name_or_path="patches"))
    with pytest.raises(ValueError, match="must be square, but they are 32x64"):
        build(teacher)(torch.zeros(2, 3, 32, 64), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="labels None must be"):
        build(teacher)(batch()[0])

import pytest
import torch
from tiny_cnns import CNN, batch, cnn_teacher
from torch.nn import functional as F
from transformers import ResNetConfig

from hgkd_hf import ClassifierTeacher
from hgkd_hf.methods.wcord.modeling import WCoRDConfig, WCoRDForImageClassification
from hgkd_hf.objectives.wasserstein import dual_loss, transport_cost
from hgkd_hf.teachers.showing import show


@pytest.fixture
def teacher() -> ClassifierTeacher:
    return cnn_teacher()


def build(teacher, **fields) -> WCoRDForImageClassification:
    torch.manual_seed(1)
    config = WCoRDConfig.for_teacher(teacher, ResNetConfig(**CNN), **fields)
    return WCoRDForImageClassification(config).attach_teacher(teacher)


def test_loss_by_hand(teacher):
    model = build(teacher, global_weight=2.0, local_weight=0.5, epsilon=0.3, iterations=4, critic_dim=7).eval()
    pixel_values, labels = batch()
    output = model(pixel_values, labels)
    ours = model.student.resnet(pixel_values).last_hidden_state.mean((2, 3))
    theirs = show(teacher, pixel_values, model.config.image_mean, model.config.image_std).feature_maps[0].mean((2, 3))
    torch.testing.assert_close(output.dual, dual_loss(model.critic(ours, theirs)))
    torch.testing.assert_close(output.primal, transport_cost(model.projector(ours), theirs, 0.3, 4))
    torch.testing.assert_close(output.label_loss, F.cross_entropy(output.logits, labels))
    torch.testing.assert_close(output.loss, output.label_loss + 2 * output.dual + 0.5 * output.primal)


def test_the_distance_falls_when_the_student_learns(teacher):
    """Of one batch, the dual form is lowered (the critic tells pairs apart) and the transport gets cheaper."""
    model = build(teacher, local_weight=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    terms = []
    for _ in range(15):
        output = model(*batch(8))
        terms.append((output.dual.item(), output.primal.item()))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert all(last < first for first, last in zip(terms[0], terms[-1]))


def test_what_does_not_fit(teacher):
    with pytest.raises(ValueError, match="epsilon is 0.0, but it must be above 0"):
        build(teacher, epsilon=0.0)
    with pytest.raises(ValueError, match=r"but this model was built for 5 \(teacher_hidden_size\)"):
        build(teacher, teacher_hidden_size=5)
    with pytest.raises(ValueError, match="build the config with WCoRDConfig.for_teacher"):
        WCoRDForImageClassification(WCoRDConfig(student_config=ResNetConfig(**CNN)))
    with pytest.raises(ValueError, match="of at least two images"):
        build(teacher).eval()(*batch(1))
    with pytest.raises(ValueError, match="labels None must be"):
        build(teacher)(batch()[0])

import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    ConvNextV2Config,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2WithRegistersConfig,
    RegNetConfig,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)

from hgkd_hf import PatchTeacher
from hgkd_hf.methods.manifold.modeling import (
    ManifoldDistillationConfig,
    ManifoldDistillationForImageClassification,
    common_tokens,
)
from hgkd_hf.objectives.manifold import manifold_loss
from hgkd_hf.students.classifier_layers import build_classifier, logits_and_maps, student_layers
from hgkd_hf.teachers import ClassifierTeacher
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
    "num_labels": 3,
}
CNN = {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1], "layer_type": "basic", "num_labels": 3}


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 64, 64, generator=generator), torch.arange(size) % 3


@pytest.fixture
def classifier() -> ClassifierTeacher:
    torch.manual_seed(3)
    model = ViTForImageClassification(ViTConfig(**VIT))
    torch.nn.init.normal_(model.classifier.weight)
    return ClassifierTeacher(model, layers=(2, -1), name_or_path="tiny-classifier")


def build(teacher, student_config, **fields):
    torch.manual_seed(1)
    config = ManifoldDistillationConfig.for_teacher(teacher, student_config, **fields)
    return ManifoldDistillationForImageClassification(config).attach_teacher(teacher)


@pytest.fixture
def model(classifier):
    """DeiT student: class and distillation tokens, 16 of width against 32, layers (1, 3) against (2, -1)."""
    student = DeiTConfig(**VIT | {"hidden_size": 16})
    return build(classifier, student, student_layers=(1, 3), alpha=0.25, beta=2.0, temperature=3.0)


def test_composition_by_hand(model, classifier):
    pixel_values, labels = batch()
    model.eval()
    torch.manual_seed(7)
    output = model(pixel_values, labels)
    assert next(iter(output.keys())) == "loss"

    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    images = (pixel_values * std + mean).clamp(0, 1)
    hidden = model.student.deit(pixel_values, output_hidden_states=True).hidden_states
    students = [hidden[i][:, 2:] for i in (1, 3)]  # without class and distillation tokens
    targets = [m.flatten(2).mT for m in classifier(images).feature_maps]
    torch.manual_seed(7)
    expected = manifold_loss(students, targets, torch.default_generator)
    for name in ("intra_image", "inter_image", "random_sample"):
        torch.testing.assert_close(output[name], expected[name])
    terms = 4 * output.intra_image + 0.1 * output.inter_image + 0.2 * output.random_sample
    torch.testing.assert_close(output.manifold_loss, terms)

    theirs, ours = classifier(images).logits / 3, output.logits / 3
    soft = 9 * F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(output.distillation_loss, soft, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.label_loss, F.cross_entropy(output.logits, labels))
    total = 0.75 * output.label_loss + 0.25 * output.distillation_loss + 2 * output.manifold_loss
    torch.testing.assert_close(output.loss, total)


def test_soft_labels_and_hard_distillation(classifier):
    model = build(classifier, ResNetConfig(**CNN), student_layers=(2, 3), alpha=0.5, distillation="hard")
    model.eval()
    pixel_values, labels = batch()
    output = model(pixel_values, labels)
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    decisions = classifier((pixel_values * std + mean).clamp(0, 1)).logits.argmax(1)
    torch.testing.assert_close(output.distillation_loss, F.cross_entropy(output.logits, decisions))
    soft = model(pixel_values, F.one_hot(labels, 3).float())
    torch.testing.assert_close(soft.label_loss, output.label_loss)


def test_same_network_has_no_manifold_loss(vit):
    """A student that is the teacher, at the same layers: every relation agrees."""
    teacher = PatchTeacher(vit, layers=(1, 2, -1))
    model = build(teacher, ViTConfig(**VIT), student_layers=(1, 2, -1)).eval()
    model.student.vit.load_state_dict(vit.state_dict())
    pixel_values = (torch.rand(2, 3, 64, 64) - 0.485) / 0.226
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    pixel_values = ((pixel_values * std + mean).clamp(0, 1) - mean) / std
    assert model(pixel_values, torch.tensor([0, 1])).manifold_loss < 1e-8


def test_common_tokens_takes_the_smallest_grid():
    large, small = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4)
    tokens = common_tokens(large, small)
    assert [tuple(t.shape) for t in tokens] == [(2, 16, 3), (2, 16, 5)]
    assert torch.equal(tokens[1], small.flatten(2).mT)
    constant, _ = common_tokens(torch.full((1, 3, 7, 7), 0.5), small[:1])
    torch.testing.assert_close(constant, torch.full((1, 16, 3), 0.5))


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(**VIT),
        DeiTConfig(**VIT),
        Dinov2WithRegistersConfig(**VIT),
        ResNetConfig(**CNN),
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, groups_width=8, num_labels=3),
        ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_labels=3),
    ],
    ids=lambda config: config.model_type,
)
def test_layers_of_every_family(config):
    model = build_classifier(config).eval()
    layers = student_layers(config)
    pixel_values = batch()[0]
    logits, maps = logits_and_maps(model, pixel_values, list(layers.values()))
    assert torch.equal(logits, model(pixel_values).logits)
    for layer, feature_map in zip(layers.values(), maps):
        assert feature_map.shape == (4, layer.channels, 64 // layer.stride, 64 // layer.stride)


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(**CNN),
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, groups_width=8, num_labels=3),
        ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_labels=3, image_size=64),
    ],
    ids=lambda config: config.model_type,
)
def test_a_cnn_teacher_classifies_regions_exactly(config):
    torch.manual_seed(0)
    model = build_classifier(config)
    teacher = ClassifierTeacher(model, image_size=64)
    assert teacher.classifies_regions
    output = teacher(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(teacher.classify(output.feature_maps[0].mean((2, 3))), output.logits)


def test_the_maps_of_a_classifier_are_its_blocks_outputs(classifier):
    images = torch.rand(2, 3, 64, 64)
    pixel_values = (images - classifier.image_mean) / classifier.image_std
    outputs = classifier.model.vit(pixel_values, output_hidden_states=True)
    expected = [outputs.hidden_states[2], outputs.last_hidden_state]
    for feature_map, tokens in zip(classifier(images).feature_maps, expected):
        assert torch.equal(feature_map.flatten(2).mT, tokens[:, 1:])


def test_teacher_is_attached_not_owned(model, classifier, tmp_path):
    pixel_values, labels = batch()
    model(pixel_values, labels).loss.backward()
    assert not any("teacher" in name for name in model.state_dict())
    assert all(p.grad is None for p in classifier.parameters())
    model.train()
    assert not any(m.training for m in classifier.modules())
    model.eval().save_pretrained(tmp_path)
    loaded, info = ManifoldDistillationForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    with pytest.raises(RuntimeError, match=r"has no teacher: attach one with model.attach_teacher.*'tiny-classifier'"):
        loaded(pixel_values, labels)
    loaded.attach_teacher(classifier)
    losses = []
    for one in (model, loaded):
        torch.manual_seed(0)
        losses.append(one(pixel_values, labels).loss)
    assert torch.equal(*losses)


def test_one_forward_of_the_teacher_and_no_product_of_all_tokens(model, classifier):
    """Cost: layers and logits come from one pass, and (BN)^2 relations are never held."""
    seen, sizes = [], []
    pixel_values, labels = batch()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in (output if isinstance(output, tuple | list) else (output,)) if torch.is_tensor(t)
            )
            return output

    with classifier.register_forward_hook(lambda module, args, output: seen.append(len(args[0]))), Sizes():
        model(pixel_values, labels).loss.backward()
    assert seen == [4]
    assert max(sizes) < (4 * 64) ** 2


@pytest.mark.parametrize("fields", [{}, {"alpha": 1.0}, {"alpha": 0.0}, {"beta": 0.0}, {"alpha": 0.0, "beta": 0.0}])
@pytest.mark.parametrize("student", [DeiTConfig(**VIT), ResNetConfig(**CNN)], ids=["deit", "resnet"])
def test_gradients_reach_every_parameter(classifier, student, fields):
    weights = {"alpha": 0.5, "beta": 1.0} | fields
    model = build(classifier, student, student_layers=(1, 3), **weights)
    output = model(*batch())
    assert (output.label_loss is None) == (weights["alpha"] == 1)
    assert (output.distillation_loss is None) == (not weights["alpha"])
    assert (output.manifold_loss is None) == (not weights["beta"])
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


class Pictures(Dataset):
    """12 pictures whose class is the brightest channel."""

    def __init__(self):
        self.pixels = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.pixels[range(12), [i % 3 for i in range(12)]] += 2

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "sample_index": index, "labels": index % 3}


def test_training_lowers_the_loss_and_exports_a_stock_checkpoint(model, tmp_path):
    args = DistillationArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        per_device_train_batch_size=12,
        learning_rate=3e-3,
        logging_steps=1,
        disable_tqdm=True,
        knn_k=3,
    )
    trainer = DistillationTrainer(model, args, Pictures(), (Pictures(), Pictures()))
    trainer.train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    entries = [entry for entry in map(json.loads, lines) if "loss" in entry]
    assert {"label_loss", "distillation_loss", "manifold_loss", "intra_image"} <= entries[0].keys()
    losses = [entry["loss"] for entry in entries]
    assert losses[-1] < 0.9 * losses[0]
    assert trainer.evaluate()["eval_knn_accuracy"] >= 1 / 3

    model.to_native().save_pretrained(tmp_path / "student")
    native, info = AutoModelForImageClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert type(native) is DeiTForImageClassification
    assert not info["missing_keys"]
    pixel_values = batch()[0]
    torch.testing.assert_close(native(pixel_values).logits, model.eval().student(pixel_values).logits)  # other strides


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"alpha": 1.5}, r"alpha is 1.5, but it must be at least 0 and at most 1"),
        ({"beta": -1}, "beta is -1, but it must be at least 0"),
        ({"intra_weight": -4.0}, "intra_weight is -4.0"),
        ({"distillation": "firm"}, "distillation is 'firm': choose one of soft, hard"),
        ({"temperature": 0}, "temperature is 0, but it must be above 0"),
        ({"num_samples": 0}, "num_samples is 0, but it must be at least 1"),
        ({"student_layers": (1,)}, r"student_layers \(1,\) and teacher_layers \(2, -1\) are paired .* 1 and 2"),
        ({"student_layers": (1, 4)}, r"student_layers names layer 4, but the student \(vit\) has 1 to 3, and -1"),
    ],
)
def test_bad_config(teacher, fields, match):
    with pytest.raises(ValueError, match=match):
        ManifoldDistillationConfig.for_teacher(teacher, ViTConfig(**VIT), **{"student_layers": (1, 3), **fields})


@pytest.mark.parametrize("config", [SwinConfig(), BertConfig()], ids=["swin", "bert"])
def test_student_without_layers(config):
    with pytest.raises(ValueError, match=rf"'{config.model_type}' has neither feature maps nor one token a patch"):
        student_layers(config)


def test_teachers_that_do_not_fit(classifier, model, vit):
    patches = PatchTeacher(vit, layers=(1,))
    with pytest.raises(ValueError, match=r"the teacher's layers are \(1,\) .* built for \(2, -1\) \(teacher_layers\)"):
        model.attach_teacher(patches)
    with pytest.raises(ValueError, match=r"alpha is 0.5, but the teacher None has no classifier: choose a checkpoint"):
        build(patches, ResNetConfig(**CNN), student_layers=(2,), alpha=0.5)
    five = ResNetForImageClassification(ResNetConfig(**CNN | {"num_labels": 5}))
    with pytest.raises(ValueError, match="but the student has 3 classes and the teacher 5, and not both name them"):
        model.attach_teacher(ClassifierTeacher(five, layers=(2, -1), image_size=64))
    with pytest.raises(
        ValueError, match=r"layers of teacher 'ResNetForImageClassification' must be -1 or 1 to 3, not 4"
    ):
        ClassifierTeacher(five, layers=(4,), image_size=64)
    with pytest.raises(ValueError, match=r"alpha is 0.25, so that labels are needed"):
        model(batch()[0])
    config = ManifoldDistillationConfig(student_config=ResNetConfig(**CNN), student_layers=(), teacher_layers=())
    with pytest.raises(ValueError, match=r"beta is 1.0, but student_layers and teacher_layers name no pair"):
        ManifoldDistillationForImageClassification(config)


def test_classifier_from_a_folder(tmp_path):
    model = ResNetForImageClassification(ResNetConfig(**CNN))
    model.save_pretrained(tmp_path / "whole")
    teacher = ClassifierTeacher.from_pretrained(tmp_path / "whole", image_size=64)
    assert (teacher.num_labels, teacher.hidden_sizes, teacher.image_size) == (3, (32,), (64, 64))
    model.resnet.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"would be partly random: its checkpoint lacks classifier.1"):
        ClassifierTeacher.from_pretrained(tmp_path / "headless")

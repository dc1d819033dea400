import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hgkd_hf import PatchTeacher
from hgkd_hf.methods.msdcrd.modeling import MSDCRDConfig, MSDCRDForImageClassification
from hgkd_hf.objectives.multi_scale_contrastive import multi_scale_contrastive_loss
from hgkd_hf.teachers import ClassifierTeacher
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 3,
}
CNN = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "layer_type": "basic", "num_labels": 3}


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 64, 64, generator=generator), torch.arange(size) % 3


def resnet_teacher(width: int = 32) -> ClassifierTeacher:
    torch.manual_seed(2)
    model = ResNetForImageClassification(ResNetConfig(**CNN | {"hidden_sizes": [8, 16, width]}))
    return ClassifierTeacher(model, image_size=64, name_or_path="tiny-resnet")


def vit_teacher() -> ClassifierTeacher:
    torch.manual_seed(2)
    return ClassifierTeacher(ViTForImageClassification(ViTConfig(**VIT)), name_or_path="tiny-vit")


def build(teacher, student_config, **fields) -> MSDCRDForImageClassification:
    torch.manual_seed(1)
    config = MSDCRDConfig.for_teacher(teacher, student_config, **fields)
    return MSDCRDForImageClassification(config).attach_teacher(teacher)


@pytest.fixture
def model() -> MSDCRDForImageClassification:
    """A ResNet of 24 channels learns from one of 32."""
    return build(resnet_teacher(), ResNetConfig(**CNN))


def test_composition_by_hand(model):
    """Both terms on the projected last map, with the classifier's selection; weights 0.5 and 2."""
    model.eval().config.sample_weight, model.config.feature_weight = 0.5, 2.0
    pixel_values, labels = batch()
    output = model(pixel_values, labels)
    assert next(iter(output.keys())) == "loss"
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    target = model.teacher.model.resnet(pixel_values.mul(std).add(mean).clamp(0, 1).sub(mean).div(std))
    student = model.projector(model.student.resnet(pixel_values).last_hidden_state)
    classifier = model.teacher.model.classifier[-1]
    expected = multi_scale_contrastive_loss(
        student, target.last_hidden_state, selection="consistent", classifier=classifier, labels=labels
    )
    torch.testing.assert_close(output.sample_wise, expected["sample_wise"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.feature_wise, expected["feature_wise"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.label_loss, F.cross_entropy(output.logits, labels))
    total = output.label_loss + 0.5 * output.sample_wise + 2 * output.feature_wise
    torch.testing.assert_close(output.loss, total)


@pytest.mark.parametrize("student", [ViTConfig(**VIT), ResNetConfig(**CNN)], ids=["vit", "resnet"])
@pytest.mark.parametrize("kind", ["resnet", "vit", "patches"])
def test_gradients_reach_every_parameter(vit, kind, student):
    teacher = {"resnet": resnet_teacher, "vit": vit_teacher, "patches": lambda: PatchTeacher(vit)}[kind]()
    for selection in ("all",) if kind == "patches" else ("all", "consistent", "sdd"):
        model = build(teacher, student, selection=selection)
        output = model(*batch())
        output.loss.backward()
        assert output.sample_wise > 0
        assert output.feature_wise > 0
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert any(name.startswith("projector") for name in model.state_dict()) == isinstance(student, ResNetConfig)


def test_warm_up_counts_training_batches_and_is_saved(model, tmp_path):
    model.config.warmup_batches = 4
    model.train()
    outputs = [model(*batch()) for _ in range(3)]
    assert [output.ramp.item() for output in outputs] == [0.25, 0.5, 0.75]
    for output in outputs:
        expected = output.label_loss + output.ramp * (output.sample_wise + output.feature_wise)
        torch.testing.assert_close(output.loss, expected)
    model.eval()(*batch())
    model.save_pretrained(tmp_path)
    loaded = MSDCRDForImageClassification.from_pretrained(tmp_path).attach_teacher(model.teacher).train()
    assert loaded.batches_seen == 3
    assert [loaded(*batch()).ramp.item() for _ in range(2)] == [1.0, 1.0]


def test_teacher_is_attached_not_owned(model, tmp_path):
    pixel_values, labels = batch()
    model(pixel_values, labels).loss.backward()
    assert not any("teacher" in name for name in model.state_dict())
    assert all(p.grad is None for p in model.teacher.parameters())
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    model.eval().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MSDCRDConfig
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is MSDCRDForImageClassification
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    with pytest.raises(RuntimeError, match=r"has no teacher: attach one with model.attach_teacher.*'tiny-resnet'"):
        loaded(pixel_values, labels)
    loaded.attach_teacher(model.teacher)
    assert torch.equal(loaded(pixel_values, labels).loss, model(pixel_values, labels).loss)


class Pictures(Dataset):
    """12 pictures whose class is the brightest channel."""

    def __init__(self):
        self.pixels = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.pixels[range(12), [i % 3 for i in range(12)]] += 2

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "sample_index": index, "labels": index % 3}


def arguments(folder, **settings) -> DistillationArguments:
    defaults = {"max_steps": 8, "per_device_train_batch_size": 12, "learning_rate": 3e-3, "logging_steps": 1}
    return DistillationArguments(output_dir=str(folder), disable_tqdm=True, **defaults | settings)


def losses(folder) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in lines if "loss" in entry and "sample_wise" in entry]


def test_training_lowers_the_loss_and_exports_a_stock_checkpoint(model, tmp_path):
    DistillationTrainer(model, arguments(tmp_path), Pictures()).train()
    assert losses(tmp_path)[-1] < 0.9 * losses(tmp_path)[0]
    model.to_native().save_pretrained(tmp_path / "student")
    native, info = AutoModelForImageClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert type(native) is ResNetForImageClassification
    assert not info["missing_keys"]
    assert all(torch.equal(value, model.student.state_dict()[name]) for name, value in native.state_dict().items())
    pixel_values = batch()[0]  # close, since the trainer's memory layout (channels last) rounds otherwise
    torch.testing.assert_close(native(pixel_values).logits, model.eval().student(pixel_values).logits)


def test_a_resumed_run_goes_on_exactly(tmp_path):
    """The warm-up too: steps 5 to 8 after a stop cost what they cost without one."""
    settings = {"save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 6}
    whole = build(resnet_teacher(), ResNetConfig(**CNN), warmup_batches=6)
    DistillationTrainer(whole, arguments(tmp_path / "whole", **settings), Pictures()).train()
    resumed = build(resnet_teacher(), ResNetConfig(**CNN), warmup_batches=6)
    trainer = DistillationTrainer(resumed, arguments(tmp_path / "resumed", **settings), Pictures())
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.batches_seen == 8
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "whole")[4:], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"layout": "dense"}, "layout is 'dense': choose one of grid, sliding"),
        ({"selection": "some"}, "selection is 'some': choose one of all, consistent, sdd"),
        ({"sample_weight": -1.0}, "sample_weight is -1.0, but it must be at least 0"),
        ({"warmup_batches": -2}, "warmup_batches is -2, but it must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0, but it must be above 0"),
    ],
)
def test_bad_config(fields, match):
    with pytest.raises(ValueError, match=match):
        MSDCRDConfig(student_config=ResNetConfig(**CNN), teacher_hidden_size=32, **fields)


def test_what_does_not_fit(model, vit):
    with pytest.raises(ValueError, match="no teacher_hidden_size is known"):
        MSDCRDForImageClassification(MSDCRDConfig(student_config=ResNetConfig(**CNN)))
    with pytest.raises(ValueError, match=r"hidden_sizes is 16, but this model was built for 32 \(teacher_hidden_size"):
        model.attach_teacher(resnet_teacher(16))
    with pytest.raises(ValueError, match=r"selection is 'consistent', but this teacher cannot classify regions"):
        model.attach_teacher(PatchTeacher(vit))
    five = ResNetConfig(**CNN | {"num_labels": 5})
    with pytest.raises(ValueError, match="but the student has 5 classes and the teacher 3, and not both name them"):
        build(resnet_teacher(), five)
    with pytest.raises(ValueError, match=r"labels None must be \(B,\) with selection 'consistent'"):
        model(batch()[0])
    with pytest.raises(ValueError, match=r"labels \(6, 3\) must be \(B,\) with selection 'consistent'"):
        model(batch()[0], F.one_hot(batch()[1], 3).float())


def test_soft_labels(model):
    model = build(resnet_teacher(), ResNetConfig(**CNN), selection="all").eval()
    pixel_values, labels = batch()
    one, other = model(pixel_values, labels), model(pixel_values, F.one_hot(labels, 3).float())
    torch.testing.assert_close(one.loss, other.loss)

import json

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModel, AutoModelForPreTraining, ResNetConfig, ResNetModel, ViTConfig

from hgkd_hf import PatchTeacher
from hgkd_hf.distillers.rob import RoBConfig, RoBForPreTraining
from hgkd_hf.trainer import DistillationArguments, DistillationTrainer

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
STUDENTS = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "vit": ViTConfig(**VIT, image_size=64, patch_size=16),
}
K = 5


def crops(batch: int = 4, local: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(batch, 2, 3, 64, 64, generator=generator)
    return whole, torch.randn(batch, local, 3, 32, 32, generator=generator)


def build(teacher, student: str = "resnet", **fields) -> RoBForPreTraining:
    torch.manual_seed(1)
    config = RoBConfig.for_teacher(
        teacher, STUDENTS[student], **{"num_prototypes": K, "head_hidden_size": 24, **fields}
    )
    return RoBForPreTraining(config).attach_teacher(teacher).fit_prototypes([crops(8)[0]])


def test_loss_by_hand(teacher):
    """DINO, two global and two local crops: teacher crop i supervises view i and both local ones."""
    model = build(teacher).eval()
    whole, local = crops()
    output = model(whole, local)
    assert next(iter(output.keys())) == "loss"
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    norm = torch.nn.functional.normalize
    log_p = []
    for view in [*whole.unbind(1), *local.unbind(1)]:
        hidden = norm(model.head.mlp(model.student(view).pooler_output.flatten(1)), dim=1)
        scores = hidden @ norm(model.head.prototypes, dim=1).T * model.head.gain
        log_p.append((scores / 0.1).log_softmax(1))
    entropies = {}
    for i, crop in enumerate(whole.unbind(1)):
        feature = teacher((crop * std + mean).clamp(0, 1)).pooled
        q = (norm(feature, dim=1) @ norm(model.prototypes, dim=1).T / 0.07).softmax(1)
        entropies |= {(i, v): -(q * log_p[v]).sum(1).mean() for v in (i, 2, 3)}
    torch.testing.assert_close(output.loss, sum(entropies.values()) / 6, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.global_loss, (entropies[0, 0] + entropies[1, 1]) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, output.global_loss / 3 + 2 * output.local_loss / 3)
    assert output.target_entropy < output.loss


@pytest.mark.parametrize("student", list(STUDENTS))
@pytest.mark.parametrize("head", ["ssl", "teacher_proto", "mlp"])
@pytest.mark.parametrize("ssl_method", ["dino", "swav", "msn"])
def test_gradients_reach_every_parameter(teacher, ssl_method, head, student):
    model = build(teacher, student, ssl_method=ssl_method, student_head=head, swapped=ssl_method == "swav")
    output = model(*crops())
    output.loss.backward()
    assert [tuple(scores.shape) for scores in output.student_scores] == [(4, K)] * 4
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_teacher_sees_global_crops_only(teacher):
    model = build(teacher)
    seen = []
    with teacher.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape))):
        model(*crops(batch=3))
    assert seen == [(6, 3, 64, 64)]


def test_one_global_crop(teacher):
    model = build(teacher).eval()
    whole = crops()[0][:, :1]
    assert torch.equal(model(whole).loss, model(whole[:, 0]).loss)
    assert model(whole).local_loss is None


def test_teacher_is_attached_not_owned(teacher, tmp_path):
    model = build(teacher)
    model(*crops()).loss.backward()
    assert not any("teacher" in name for name in model.state_dict())
    assert all(p.grad is None for p in teacher.parameters())
    torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(K))
    model.eval().save_pretrained(tmp_path)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is RoBForPreTraining
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    with pytest.raises(RuntimeError, match=r"has no teacher: attach one with model.attach_teacher.*'tiny-vit'"):
        loaded(*crops())
    assert torch.equal(loaded.attach_teacher(teacher)(*crops()).loss, model(*crops()).loss)


class Crops(Dataset):
    """12 pictures of three colours, for training as two global crops and a local one."""

    def __init__(self, views: bool):
        self.pixels = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.pixels[range(12), [i % 3 for i in range(12)]] += 2
        self.views = views

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image, sample = self.pixels[index], {"sample_index": index, "labels": index % 3}
        if not self.views:
            return sample | {"pixel_values": image}
        return sample | {
            "pixel_values": torch.stack([image, image.flip(2)]),
            "local_pixel_values": image[None, :, :32],
        }


def test_training_lowers_the_loss_and_exports_a_stock_checkpoint(teacher, tmp_path):
    data = Crops(views=True)
    model = build(teacher).fit_prototypes([torch.stack([data[i]["pixel_values"] for i in range(12)])])
    prototypes = model.prototypes.clone()
    args = DistillationArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=6,
        per_device_train_batch_size=12,
        learning_rate=1e-2,
        logging_steps=1,
        disable_tqdm=True,
        knn_k=3,
    )
    trainer = DistillationTrainer(model, args, data, (Crops(views=False), Crops(views=False)))
    trainer.train()
    entries = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    entries = [entry for entry in entries if "loss" in entry]
    assert {"global_loss", "local_loss", "target_entropy"} <= entries[0].keys()
    excess = [entry["loss"] - entry["target_entropy"] for entry in entries]
    assert excess[-1] < 0.9 * excess[0]
    assert torch.equal(model.prototypes, prototypes)
    assert 0 <= trainer.evaluate()["eval_knn_accuracy"] <= 1

    model.to_native().save_pretrained(tmp_path / "student")
    native, info = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert type(native) is ResNetModel
    assert not info["missing_keys"]
    assert all(torch.equal(value, model.student.state_dict()[name]) for name, value in native.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"ssl_method": "byol"}, "ssl_method is 'byol': choose one of dino, swav, msn"),
        ({"student_head": "conv"}, "student_head is 'conv': choose one of ssl, teacher_proto, mlp"),
        ({"teacher_temperature": 0.0}, "teacher_temperature is 0.0, but it must be above 0"),
        ({"student_temperature": -1.0}, "student_temperature is -1.0, but it must be above 0"),
        ({"num_prototypes": 1}, "num_prototypes is 1, but it must be at least 2"),
        ({"num_prototypes": 50}, "num_prototypes is 50, but there are 16 images to fit them to: give more, or"),
    ],
)
def test_bad_config(teacher, fields, match):
    with pytest.raises(ValueError, match=match):
        build(teacher, **fields)


def test_what_does_not_fit(teacher, vit):
    model = build(teacher, swapped=True)
    whole, local = crops()
    with pytest.raises(ValueError, match=r"pixel_values \(4, 2, 3, 64, 64\) and local_pixel_values \(3, 2, .* differ"):
        model(whole, local[:3])
    with pytest.raises(ValueError, match=r"pixel_values \(3, 64, 64\) must be \(B, crops, 3, height, width\)"):
        model(whole[0, 0])
    with pytest.raises(ValueError, match="swapped assignment needs a second view"):
        model(whole[:, :1])
    with pytest.raises(ValueError, match="no teacher_hidden_size is known"):
        RoBForPreTraining(RoBConfig(student_config=STUDENTS["resnet"]))
    model.prototypes.zero_()
    with pytest.raises(RuntimeError, match=r"has no prototypes: fit them once with model.fit_prototypes\(batches\)"):
        model(whole)
    shallow = PatchTeacher(vit, layers=(1,))  # takes the blocks above off the ViT that `teacher` also uses
    with pytest.raises(ValueError, match=r"are \(\(1,\), 32, 'full'\), but this model was built for \(\(-1,\), 32,"):
        model.attach_teacher(shallow)

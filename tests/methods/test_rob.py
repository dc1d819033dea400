import json

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    CLIPVisionConfig,
    Dinov2Config,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
)

from hgkd_hf import PatchTeacher
from hgkd_hf.methods.rob.modeling import RoBConfig, RoBForPreTraining
from hgkd_hf.teachers import TeacherHead
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

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
        feature = (teacher((crop * std + mean).clamp(0, 1)).pooled - model.feature_mean) / model.feature_std
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


def hidden_patches(batch: int = 4) -> torch.Tensor:
    """Two global crops of 4x4 patches; none of the first image's is hidden."""
    mask = torch.rand(batch, 2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.3
    mask[0] = False
    return mask


def test_ibot_by_hand(teacher):
    """Crops as in DINO; the patch term compares the patches hidden from the student with the teacher's."""
    model = build(teacher, "vit", ssl_method="ibot", image_size=64, patch_weight=0.5).eval()
    torch.nn.init.normal_(model.student.embeddings.mask_token)
    (whole, local), mask = crops(), hidden_patches()
    output = model(whole, local, mask)
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    norm = torch.nn.functional.normalize
    per_image = torch.zeros(4, 2)
    for view in range(2):
        tokens = model.student(whole[:, view], bool_masked_pos=mask[:, view].flatten(1)).last_hidden_state[:, 1:]
        hidden = norm(model.head.mlp(tokens), dim=2)
        log_p = (hidden @ norm(model.head.prototypes, dim=1).T * model.head.gain / 0.1).log_softmax(2)
        target = teacher((whole[:, view] * std + mean).clamp(0, 1)).feature_maps[-1]
        target = torch.nn.functional.interpolate(target, (4, 4), mode="bilinear", antialias=True).flatten(2).mT
        target = (target - model.feature_mean) / model.feature_std
        q = (norm(target, dim=2) @ norm(model.prototypes, dim=1).T / 0.07).softmax(2)
        cross_entropy = -(q * log_p).sum(2)
        chosen = mask[:, view].flatten(1)
        per_image[:, view] = (cross_entropy * chosen).sum(1) / chosen.sum(1).clamp_min(1)
    torch.testing.assert_close(output.patch_loss, per_image.mean(), rtol=1e-4, atol=1e-5)
    crop_loss = output.global_loss / 3 + 2 * output.local_loss / 3
    torch.testing.assert_close(output.loss, crop_loss + 0.5 * output.patch_loss)
    assert model.describe_objective()["objective"].endswith("patches 0.5")


def test_ibot_trains_all_that_it_has_and_empty_masks_are_zero(teacher):
    model = build(teacher, "vit", ssl_method="ibot", image_size=64)
    whole, local = crops()
    model(whole, local, hidden_patches()).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.student.embeddings.mask_token.grad.any()
    output = model(whole, local, torch.zeros(4, 2, 4, 4, dtype=torch.bool))
    assert output.patch_loss == 0
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match=r"'ibot' needs bool_masked_pos \(4, 2, 4, 4\), but it is None"):
        model(whole, local)


def test_msn_drops_tokens_of_global_crops_in_training(teacher):
    model = build(teacher, "vit", ssl_method="msn", token_drop_ratio=0.25, image_size=64)
    lengths = []
    with model.student.layers[0].register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1])):
        model(*crops())
        model.eval()(*crops())
    assert lengths == [1 + 12, 1 + 4, 1 + 16, 1 + 4]  # 4x4 patches of global crops, 2x2 of local ones
    assert torch.equal(model(*crops()).loss, model(*crops()).loss)


@pytest.mark.parametrize("fields", [{"ssl_method": "ibot"}, {"ssl_method": "msn", "token_drop_ratio": 0.1}])
def test_a_cnn_hides_no_patches(teacher, fields):
    with pytest.raises(ValueError, match="hides patches from a vision transformer, but the student is a resnet model"):
        build(teacher, **fields)


def test_a_student_without_mask_token_cannot_learn_ibot(teacher):
    clip = CLIPVisionConfig(**VIT, image_size=64, patch_size=16)
    with pytest.raises(ValueError, match="a mask token, but a clip_vision_model student has none"):
        RoBForPreTraining(RoBConfig.for_teacher(teacher, clip, ssl_method="ibot", image_size=64))


def test_an_unused_mask_token_is_frozen(teacher):
    dinov2 = Dinov2Config(**VIT, image_size=64, patch_size=16)
    torch.manual_seed(0)
    model = RoBForPreTraining(RoBConfig.for_teacher(teacher, dinov2, num_prototypes=K, head_hidden_size=24))
    model.attach_teacher(teacher).fit_prototypes([crops(8)[0]])
    model(*crops()).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("ssl_method", ["dino", "ibot"])
def test_a_vit_leaves_as_a_stock_checkpoint(teacher, ssl_method, tmp_path):
    model = build(teacher, "vit", ssl_method=ssl_method, image_size=64).eval()
    model.to_native().save_pretrained(tmp_path)
    native, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    whole = crops()[0][:, 0]
    assert torch.equal(native(whole).pooler_output, model.image_features(whole))


def teacher_head(tmp_path, width: int = 32) -> TeacherHead:
    torch.manual_seed(4)
    sizes = (width, 20, 20, 6)
    state = {
        f"head.mlp.{2 * i}.{n}": v for i in range(3) for n, v in nn.Linear(*sizes[i : i + 2]).state_dict().items()
    }
    state |= {"head.last_layer.weight_g": torch.ones(7, 1), "head.last_layer.weight_v": torch.randn(7, 6)}
    torch.save({"teacher": state, "student": {}}, tmp_path / "dino.pth")
    return TeacherHead.from_file(tmp_path / "dino.pth", "dino")


@pytest.mark.parametrize("student_head", ["ssl", "teacher_proto"])
def test_the_teachers_own_head_takes_its_class_token(teacher, student_head, tmp_path):
    head = teacher_head(tmp_path)
    torch.manual_seed(1)
    fields = {"student_head": student_head, "head_hidden_size": 24}
    config = RoBConfig.for_teacher(teacher, STUDENTS["resnet"], head, **fields)
    assert (config.num_prototypes, config.teacher_hidden_size) == (7, 6)
    model = RoBForPreTraining(config).attach_teacher(teacher, head).eval()
    whole, local = crops()
    output = model(whole, local)
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    tokens = [teacher((crop * std + mean).clamp(0, 1)).class_token for crop in whole.unbind(1)]
    q = [(head(token) / 0.07).softmax(1) for token in tokens]
    p = [(scores / 0.1).log_softmax(1) for scores in output.student_scores]
    pairs = [(i, v) for i in range(2) for v in (i, 2, 3)]
    torch.testing.assert_close(output.loss, sum(-(q[i] * p[v]).sum(1).mean() for i, v in pairs) / 6)
    assert not any(torch.equal(value, head.prototypes) for value in model.state_dict().values())
    with pytest.raises(ValueError, match="the prototypes are those of teacher_head .*: fit none"):
        model.fit_prototypes([whole])
    with pytest.raises(ValueError, match="this model was built for teacher_head .*, but none is given"):
        model.attach_teacher(teacher)
    with pytest.raises(ValueError, match="takes 16 channels and has .* but the teacher gives 32"):
        model.attach_teacher(teacher, teacher_head(tmp_path, width=16))


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


def test_what_all_teacher_features_share_does_not_blur_the_targets(teacher, monkeypatch):
    """A constant added to every feature, and one loud channel, leave the assignments as they were."""
    model = build(teacher).eval()
    before, teach = model(*crops()).target_entropy, model.teach
    scale = torch.ones(32)
    scale[0] = 1000

    def louder(pixel_values):
        output = teach(pixel_values)
        maps = tuple((m + 50) * scale.view(1, -1, 1, 1) for m in output.feature_maps)
        return type(output)(feature_maps=maps)

    monkeypatch.setattr(model, "teach", louder)
    model.fit_prototypes([crops(8)[0]])
    torch.testing.assert_close(model(*crops()).target_entropy, before, rtol=1e-3, atol=1e-3)


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
        ({"ssl_method": "byol"}, "ssl_method is 'byol': choose one of dino, swav, ibot, msn"),
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

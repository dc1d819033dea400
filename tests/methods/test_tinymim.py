"""TinyMIM: its tokens by hand, students of both kinds, and teachers that have no such relations."""

import json

import pytest
import torch
from contract import STUDENT, Built
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    Data2VecVisionConfig,
    DeiTConfig,
    Dinov2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from hgkd_hf import PatchTeacher
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.methods.tinymim.modeling import TinyMIMConfig, TinyMIMForPreTraining
from hgkd_hf.objectives.token_relations import relation_losses

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "image_size": 64}
BATCH = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(teacher: PatchTeacher, student_config, **fields) -> TinyMIMForPreTraining:
    torch.manual_seed(1)
    config = TinyMIMConfig.for_teacher(teacher, student_config, image_size=64, **fields)
    return TinyMIMForPreTraining(config).attach_teacher(teacher)


def test_relations_by_hand(vit):
    """Of the second of three blocks: class token and patches of teacher and student, through their own projections."""
    reference = ViTModel(vit.config, add_pooling_layer=False)
    reference.load_state_dict(vit.state_dict())
    teacher = PatchTeacher(vit, layers=(2,))
    model = build(teacher, DeiTConfig(**VIT, patch_size=8), relations="qq+kk+vv+qk").eval()
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_std, model.config.image_mean))
    images = (BATCH * std + mean).clamp(0, 1)

    def heads(tokens):
        return tokens.view(2, 65, 2, 16).transpose(1, 2)

    hidden = reference.eval()(teacher.normalise(images, None), output_hidden_states=True).hidden_states[1]
    block = reference.layers[1]
    normed = block.layernorm_before(hidden)
    target = {name: heads(getattr(block.attention, f"{name}_proj")(normed)) for name in "qkv"}
    outputs = model.student(BATCH)
    tokens = torch.cat([outputs.pooler_output.unsqueeze(1), outputs.last_hidden_state[:, 2:]], 1)
    tokens = model.adaptive_block.norm(tokens)
    student = {name: heads(layer(tokens)) for name, layer in model.adaptive_block.projections.items()}
    expected = relation_losses(student, target, ("qq", "kk", "vv", "qk"))
    output = model(BATCH)
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value)
    torch.testing.assert_close(output.loss, sum(expected.values()))


@pytest.mark.parametrize("kind", [ViTConfig, DeiTConfig, Dinov2Config], ids=lambda kind: kind.model_type)
def test_every_weight_of_a_vit_student_learns(kind, teacher, vit, tmp_path):
    """Its pooler too, by the class token's relations; the stock checkpoint has all of them."""
    model = build(PatchTeacher(vit, layers=(3,)), kind(**VIT, patch_size=16))
    model(BATCH).loss.backward()
    learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in learning.items() if gradient is None] == []
    assert [name for name in learning if name.endswith("mask_token")] == []
    native = model.to_native()
    native.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(native)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(loaded(BATCH).last_hidden_state, model.eval().student(BATCH).last_hidden_state)


def test_learning_lowers_the_loss(vit):
    model = build(PatchTeacher(vit, layers=(3,)), ViTConfig(**VIT, patch_size=8))
    torch.nn.init.normal_(model.teacher.model.layers[-1].attention.q_proj.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(model(BATCH).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


TEACHERS = {
    "dinov2": lambda: AutoModel.from_config(Dinov2Config(**VIT, patch_size=16)),
    "data2vec": lambda: AutoModel.from_config(Data2VecVisionConfig(**VIT, patch_size=16)),
    "siglip, without a class token": lambda: SiglipVisionModel(SiglipVisionConfig(**VIT, patch_size=16)),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers(name):
    model = build(PatchTeacher(TEACHERS[name](), layers=(1,)), ViTConfig(**VIT, patch_size=16))
    attention = model._teacher_attention(BATCH)
    assert {key: tuple(value.shape) for key, value in attention.items()} == dict.fromkeys("qkv", (2, 3, 17, 8))
    assert model(BATCH).loss.isfinite()


def test_a_vit_student_decides_the_teachers_size(world):
    """8x8 tokens of 8 pixels: the teacher, of 16, sees 128 pixels; for a CNN the crop's own 64."""
    student = {"model_type": "vit", **VIT, "patch_size": 8}
    settings = {"method": "tinymim", "dataset": str(world / "images"), "teacher": str(world / "classifier")}
    sizes = {}
    for kind, config in (("vit", student), ("cnn", STUDENT)):
        method = METHODS["tinymim"](**settings, student=json.dumps(config), image_size=64)
        sizes[kind] = method.build_model().teacher.image_size
    assert sizes == {"vit": (128, 128), "cnn": (64, 64)}


def test_what_does_not_fit(vit, teacher, world):
    with pytest.raises(ValueError, match=r"one block .* a vit model with the layers \(2, -1\) \(--teacher_layers"):
        TinyMIMConfig.for_teacher(teacher, ViTConfig(**VIT))
    swin = PatchTeacher(SwinModel(SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2])))
    with pytest.raises(ValueError, match="a plain vision transformer, but the teacher is a swin model"):
        TinyMIMConfig.for_teacher(swin, ViTConfig(**VIT))
    model = build(PatchTeacher(vit, layers=(3,)), ViTConfig(**VIT))
    with pytest.raises(ValueError, match=r"teacher_grid is \[4, 4\], but this model was built for \[8, 8\]"):
        model.attach_teacher(PatchTeacher(vit, layers=(3,), image_size=32))
    with pytest.raises(ValueError, match="no teacher_hidden_size is known"):
        AutoModelForPreTraining.from_config(TinyMIMConfig(student_config=ViTConfig(**VIT)))
    for settings, match in (
        ({"teacher_cache": "caches/mine"}, "which no cache holds"),
        ({"relations": "qv"}, "relations is 'qv': choose one of"),
    ):
        with pytest.raises(ValueError, match=match):
            METHODS["tinymim"](method="tinymim", dataset="images", **settings).check()


def test_classifier_checkpoints_teach(world):
    """Their encoder does: no class is asked for."""
    built = Built(METHODS["tinymim"], "tinymim", world)
    assert isinstance(built.model.teacher, PatchTeacher)

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    MobileViTConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from hgkd_hf import SparseUNetBackbone, SparseUNetConfig, SparseUNetForImageClassification, SparseUNetModel
from hgkd_hf.students.features import feature_scales

MASK = torch.tensor([[[True, False, True, True], [False, True, True, False]] + [[True] * 4] * 2] * 2)


@pytest.fixture
def student(student_config):
    torch.manual_seed(0)
    student = SparseUNetModel(student_config)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return student


def test_scales_and_sizes_of_resnet_50():
    """Parameter counts of SparK's decoder and densify for ResNet-50: 23.2 and 6.2 million."""
    config = SparseUNetConfig(encoder_config=ResNetConfig(), decoder_stride=1)
    assert [(s.channels, s.stride) for s in feature_scales(config.encoder_config)] == [
        (256, 4),
        (512, 8),
        (1024, 16),
        (2048, 32),
    ]
    with torch.device("meta"):
        decoder = SparseUNetModel(config).decoder
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in decoder.named_children()}
    assert round(count["blocks"] / 1e6, 1) == 23.2
    assert round(count["densify"] / 1e6, 1) == 6.2


def test_shapes(student):
    output = student(torch.randn(2, 3, 64, 64), MASK, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 16, 8, 8)
    assert output.pooler_output.shape == (2, 32)
    assert [tuple(m.shape[1:]) for m in output.feature_maps] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]


@pytest.mark.parametrize("decoder_stride", [8, 1])
def test_backends_agree(student_config, decoder_stride):
    student_config.decoder_stride = decoder_stride
    torch.manual_seed(0)
    cells = SparseUNetModel(student_config).double()
    masked = copy.deepcopy(cells)
    masked.sparse_backend = "masked"
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    outputs = [student(images, MASK, output_hidden_states=True) for student in (cells, masked)]
    for one, other in zip(outputs[0].to_tuple()[:2], outputs[1].to_tuple()[:2]):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for output in outputs:
        output.last_hidden_state.square().mean().backward()
    for (name, one), other in zip(cells.named_parameters(), masked.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-12, msg=name)


def test_hidden_pixels_never_matter(student):
    images = torch.randn(2, 3, 64, 64)
    hidden = MASK.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    changed = torch.where(hidden, 10 * torch.randn_like(images), images)
    one, other = (student.eval()(pixels, MASK).last_hidden_state for pixels in (images, changed))
    assert torch.equal(one, other)
    assert not torch.equal(one, student(images).last_hidden_state)


def test_every_parameter_gets_a_gradient(student):
    """DDP refuses parameters that no loss uses."""
    output = student(torch.randn(2, 3, 64, 64), MASK)
    output.last_hidden_state.square().mean().backward()
    assert [name for name, p in student.named_parameters() if p.grad is None] == []


def test_pooled_feature_is_the_mean_over_visible_positions(student):
    output = student.eval()(torch.randn(2, 3, 64, 64), MASK, output_hidden_states=True)
    deepest = output.feature_maps[-1]
    expected = deepest.permute(0, 2, 3, 1)[~MASK].view(2, 3, -1).mean(1)
    torch.testing.assert_close(output.pooler_output, expected)


def test_round_trip_bit_for_bit(student, tmp_path):
    student.eval().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path).encoder_config, ResNetConfig)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SparseUNetModel
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = torch.randn(2, 3, 64, 64)
    for mask in (None, MASK):
        assert torch.equal(loaded(images, mask).last_hidden_state, student(images, mask).last_hidden_state)


def test_mask_tokens_missing_from_a_file_are_initialised(student, tmp_path):
    """Models are built on the meta device: what a checkpoint lacks must not be left as memory was."""
    state = {k: v for k, v in student.state_dict().items() if not k.endswith("mask_token")}
    student.save_pretrained(tmp_path, state_dict=state)
    loaded = SparseUNetModel.from_pretrained(tmp_path)
    for densify in loaded.decoder.densify:
        assert 0 < densify.mask_token.std() < 0.05


def test_to_native(student, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    native = student.eval().to_native()
    assert {type(m) for m in native.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    native.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded).__name__ == "ResNetModel"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    maps = student(images, output_hidden_states=True).feature_maps
    assert torch.equal(loaded(images).last_hidden_state, maps[-1])
    assert torch.equal(loaded(images).pooler_output.flatten(1), student.image_features(images))


def test_backbone(student, tmp_path):
    student.eval().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, out_features=["stage1", "stage3"])
    backbone, info = SparseUNetBackbone.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert backbone.channels == [8, 32]
    images = torch.randn(2, 3, 64, 64)
    maps = student(images, output_hidden_states=True).feature_maps
    for one, other in zip(backbone(images).feature_maps, (maps[0], maps[2])):
        assert torch.equal(one, other)
    assert isinstance(AutoBackbone.from_config(config), SparseUNetBackbone)


def test_classification(student, tmp_path):
    student.eval().save_pretrained(tmp_path / "student")
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path / "student", id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2}
    )
    assert isinstance(model, SparseUNetForImageClassification)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    assert torch.equal(model.sparse_unet(images).pooler_output, student(images).pooler_output)
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    model.to_native().save_pretrained(tmp_path / "native")
    native = AutoModelForImageClassification.from_pretrained(tmp_path / "native")
    assert native.config.id2label[2] == "owl"
    torch.testing.assert_close(native(images).logits, output.logits)


def test_from_encoder(student, tmp_path):
    student.to_native().save_pretrained(tmp_path)
    other = SparseUNetModel.from_encoder(str(tmp_path), decoder_width=32)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(other.eval().image_features(images), student.eval().image_features(images))


@pytest.mark.parametrize("config", [ViTConfig, SwinConfig, BertConfig])
def test_student_without_scales(config):
    with pytest.raises(ValueError, match=f"student model type '{config.model_type}' gives no feature maps"):
        SparseUNetConfig(encoder_config=config())


def test_student_that_no_mask_can_follow():
    with pytest.raises(ValueError, match=r"layer 'encoder.*attention.*cannot be made exact"):
        SparseUNetModel(SparseUNetConfig(encoder_config=MobileViTConfig()))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"cell_size": 24}, "cell_size 24 is not a multiple of the student's total stride 16: choose 32"),
        ({"decoder_stride": 3}, "decoder_stride 3 cannot be reached .* choose one of 16, 8, 4, 2, 1"),
        ({"decoder_width": 10, "decoder_stride": 1}, "decoder_width 10 cannot be halved 4 times: .* multiple of 16"),
    ],
)
def test_bad_config(encoder_config, fields, match):
    with pytest.raises(ValueError, match=match):
        SparseUNetConfig(encoder_config=encoder_config, **fields)


@pytest.mark.parametrize("size", [(64, 64), (60, 50), (33, 90)])
def test_without_mask_and_decoder_images_may_have_any_size(student_config, size):
    student_config.id2label = {0: "a", 1: "b", 2: "c"}
    images = torch.randn(2, 3, *size)
    native = SparseUNetForImageClassification(student_config).eval()
    torch.testing.assert_close(native(images).logits, native.to_native()(images).logits)
    maps = SparseUNetBackbone(student_config).eval()(images).feature_maps
    assert maps[-1].shape[2:] == tuple(-(-side // 16) for side in size)


def test_an_older_config_with_its_backend_loads(student_config):
    """What computes the visible cells was saved once; it is a choice of the run."""
    config = SparseUNetConfig(**student_config.to_dict() | {"sparse_backend": "spconv"})
    assert "sparse_backend" not in config.to_dict()
    assert SparseUNetModel(config).sparse_backend == "cells"


def test_images_and_masks_that_do_not_fit(student):
    with pytest.raises(ValueError, match="image_size 60 is not a multiple of the 16-pixel mask cells"):
        student(torch.randn(2, 3, 60, 64))
    with pytest.raises(ValueError, match=r"grid of \(4, 4\), but images of \(64, 96\) pixels have \(4, 6\) cells"):
        student(torch.randn(2, 3, 64, 96), MASK)


def test_compiled_student_is_not_compiled_anew_for_every_mask(student):
    images = torch.randn(2, 3, 64, 64)
    expected = [student.eval()(images, mask).last_hidden_state for mask in (MASK, MASK.flip(1), ~MASK)]
    compiled = torch.compile(student, backend="eager")
    compiled(images, MASK)
    compiled(images, ~MASK)  # another number of visible cells: sizes may turn dynamic once
    with torch._dynamo.config.patch(error_on_recompile=True):
        results = [compiled(images, mask).last_hidden_state for mask in (MASK, MASK.flip(1), ~MASK)]
    for one, other in zip(results, expected):
        torch.testing.assert_close(one, other)

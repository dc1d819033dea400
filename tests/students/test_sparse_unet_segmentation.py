import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from hgkd_hf import SparseUNetConfig, SparseUNetForSemanticSegmentation, SparseUNetModel


def segmenter(encoder_config, **settings) -> SparseUNetForSemanticSegmentation:
    torch.manual_seed(0)
    config = SparseUNetConfig(
        encoder_config=encoder_config, decoder_width=32, decoder_stride=4, num_labels=3, **settings
    )
    return SparseUNetForSemanticSegmentation(config).eval()


def test_images_of_any_size_get_a_class_a_pixel(encoder_config):
    model = segmenter(encoder_config)
    images = torch.randn(2, 3, 50, 37)
    with torch.no_grad():
        logits = model(images).logits
        padded = model(F.pad(images, (0, 11, 0, 14))).logits  # to 64 x 48, multiples of 16
    assert logits.shape == (2, 3, 50, 37)
    assert torch.equal(logits, padded[..., :50, :37])


def test_loss_leaves_ignored_pixels_out(encoder_config):
    model = segmenter(encoder_config, semantic_loss_ignore_index=7)
    images, labels = torch.randn(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 7
    with torch.no_grad():
        output = model(images, labels=labels)
    expected = F.cross_entropy(output.logits[..., :16], labels[..., :16])
    assert torch.allclose(output.loss, expected)


def test_saved_and_loaded_by_its_auto_class(encoder_config, tmp_path):
    model = segmenter(encoder_config)
    model.save_pretrained(tmp_path)
    loaded, loading = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images).logits, model(images).logits)


def test_a_full_decoder_is_cut_and_every_parameter_is_used(encoder_config, tmp_path):
    student = SparseUNetModel(SparseUNetConfig(encoder_config=encoder_config, decoder_width=32, decoder_stride=1))
    student.save_pretrained(tmp_path)
    model = SparseUNetForSemanticSegmentation.from_student(str(tmp_path), decoder_stride=8, num_labels=3).train()
    assert len(model.sparse_unet.decoder.blocks) == 1
    weight = student.decoder.blocks[0].convolutions[3].weight
    assert torch.equal(model.sparse_unet.decoder.blocks[0].convolutions[3].weight, weight)
    model(torch.randn(2, 3, 32, 32), labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # DDP would stop otherwise


def test_a_student_without_a_decoder_is_loaded_as_such_and_not_segmented_by_a_fresh_one(encoder_config, tmp_path):
    config = SparseUNetConfig(encoder_config=encoder_config, decoder_width=32, use_decoder=False)
    SparseUNetModel(config).save_pretrained(tmp_path)
    student, loading = SparseUNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert student.decoder is None
    assert not loading["missing_keys"]
    assert student(torch.randn(1, 3, 32, 32)).last_hidden_state is None
    with pytest.raises(
        ValueError, match="has no decoder to keep: pre-train it with `hgkd distill --decoder truncated`"
    ):
        SparseUNetForSemanticSegmentation.from_student(str(tmp_path), num_labels=3)

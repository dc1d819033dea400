import pytest
import torch
from transformers import AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.methods.hgkd import aligned_teacher_image_size
from hgkd_hf.sparse.masking import random_cell_mask


def batch(size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([random_cell_mask((4, 4), 0.6, generator) for _ in range(size)])
    return torch.randn(size, 3, 64, 64, generator=generator), masks


def test_output(hgkd):
    output = hgkd(*batch())
    assert next(iter(output.keys())) == "loss"
    assert output.loss == output.feature_loss
    assert output.pixel_loss is None
    assert [tuple(p.shape) for p in output.feature_predictions] == [(2, 32, 8, 8)] * 2
    assert [tuple(t.shape) for t in output.teacher_features] == [(2, 32, 8, 8)] * 2


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_loss_by_hand(hgkd, monkeypatch, positions):
    """Smooth L1 (beta 2) of predictions and normalised targets, over tokens and channels, then over layers."""
    pixel_values, mask = batch()
    monkeypatch.setattr(hgkd.config, "positions", positions)
    output = hgkd(pixel_values, mask)
    chosen = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    if positions == "all":
        chosen = torch.ones_like(chosen)
    losses = []
    for prediction, target in zip(output.feature_predictions, output.teacher_features):
        mean, var = target.mean(1, keepdim=True), target.var(1, unbiased=False, keepdim=True)
        distance = (prediction - (target - mean) / (var + 1e-6).sqrt()).abs()
        cost = torch.where(distance < 2, distance**2 / 4, distance - 1).mean(1)
        losses.append((cost * chosen).sum() / chosen.sum())
    torch.testing.assert_close(output.loss, sum(losses) / 2)


def test_teacher_sees_the_same_image_with_its_own_normalisation(hgkd, teacher):
    mask = batch()[1]
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (hgkd.config.image_mean, hgkd.config.image_std))
    seen = hgkd((images - mean) / std, mask).teacher_features
    for one, other in zip(seen, teacher(images).feature_maps):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_hidden_pixels_reach_the_loss_through_the_teacher_only(hgkd):
    pixel_values, mask = batch()
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    changed = torch.where(hidden, torch.randn_like(pixel_values), pixel_values)
    one, other = hgkd.eval()(pixel_values, mask), hgkd(changed, mask)
    assert torch.equal(one.feature_predictions[0], other.feature_predictions[0])
    assert not torch.equal(one.teacher_features[0], other.teacher_features[0])


def test_perfect_prediction_costs_nothing():
    from hgkd_hf.objectives.feature_regression import feature_regression_loss

    target = torch.randn(2, 16, 4, 4)
    normalised = torch.nn.functional.layer_norm(target.permute(0, 2, 3, 1), (16,), eps=1e-6).permute(0, 3, 1, 2)
    for loss in ("smooth-l1", "mse", "cosine"):
        assert feature_regression_loss(normalised, target, None, loss) < 1e-6


def test_teacher_is_attached_not_owned(hgkd, tmp_path):
    pixel_values, mask = batch()
    hgkd(pixel_values, mask).loss.backward()
    assert not any("teacher" in name for name in hgkd.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in hgkd.teacher.parameters())
    hgkd.train()
    assert not any(module.training for module in hgkd.teacher.modules())
    hgkd.eval().save_pretrained(tmp_path)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is HGKDForPreTraining
    assert not info["missing_keys"]
    with pytest.raises(RuntimeError, match=r"has no teacher: attach one with model.attach_teacher.*'tiny-vit'"):
        loaded(pixel_values, mask)
    assert torch.equal(loaded.attach_teacher(hgkd.teacher)(pixel_values, mask).loss, hgkd(pixel_values, mask).loss)


def test_gradients_reach_every_parameter(teacher, student_config):
    for fields in ({}, {"decoder": "full"}, {"decoder": "full", "pixel_weight": 0.5}, {"positions": "all"}):
        model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, image_size=64, **fields))
        model.attach_teacher(teacher)(*batch()).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == [], fields


def test_spark_baseline_needs_no_teacher(student_config):
    config = HGKDConfig(
        student_config=student_config, image_size=64, feature_weight=0, pixel_weight=1.0, decoder="full"
    )
    model = HGKDForPreTraining(config)
    pixel_values, mask = batch()
    output = model(pixel_values, mask)
    assert output.feature_loss is None
    # By hand: each hidden cell's pixels, normalised by their own mean and unbiased deviation.
    costs = []
    for image, y, x in mask.nonzero().tolist():
        area = slice(16 * y, 16 * y + 16), slice(16 * x, 16 * x + 16)
        cell = pixel_values[image, :, *area]
        target = (cell - cell.mean()) / (cell.var() + 1e-6).sqrt()
        costs.append((output.pixel_predictions[image, :, *area] - target).square().mean())
    torch.testing.assert_close(output.loss, torch.stack(costs).mean())


def test_masked_mae_teacher_infers_from_visible_pixels(student_config):
    torch.manual_seed(0)
    mae = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
            patch_size=8,
            decoder_hidden_size=24,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=48,
        )
    )
    teacher = PatchTeacher(mae, layers=None, teacher_input="masked")
    model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, image_size=64)).attach_teacher(teacher)
    pixel_values, mask = batch()
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    changed = torch.where(hidden, torch.randn_like(pixel_values), pixel_values)
    one, other = model.eval()(pixel_values, mask), model(changed, mask)
    assert one.teacher_features[0].shape == (2, 24, 8, 8)
    assert torch.equal(one.loss, other.loss)


def test_mask_is_drawn_when_none_is_given(hgkd):
    output = hgkd(batch()[0])
    assert (~output.bool_masked_pos).flatten(1).sum(1).tolist() == [6, 6]


@pytest.mark.parametrize(
    ("patch", "image", "expected"),
    [(16, 224, (224, 224)), (14, 224, (196, 196)), (14, 128, (112, 112)), (8, 64, (32, 32))],
)
def test_aligned_teacher_image_size(patch, image, expected):
    size = aligned_teacher_image_size(patch, image, SparseUNetConfig())
    assert size == expected if patch != 8 else size[0] // 8 % 2 == 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"mask_ratio": 1}, "mask_ratio is 1, but"),
        ({"mask_ratio": 0.98}, "leaves none of the 4x4 cells visible: lower mask_ratio to 0.938"),
        ({"mask_ratio": 0.0, "positions": "masked"}, "mask_ratio 0 hides nothing to predict"),
        ({"image_size": 60}, "image_size 60 is not a multiple of the 16-pixel mask cells: set image_size to 48 or 64"),
        ({"loss": "l3"}, "loss is 'l3': choose one of smooth-l1, mse, cosine"),
        ({"positions": "visible"}, "positions is 'visible'"),
        ({"decoder": "half"}, "decoder is 'half'"),
        ({"pixel_weight": 1.0}, "pixel_weight 1.0 needs the whole decoder: set decoder to 'full'"),
        ({"feature_weight": 0}, "one must be above 0"),
        ({"image_size": 96}, "8x8 tokens do not divide the 6x6 mask cells .* change teacher_image_size"),
    ],
)
def test_bad_config(teacher, student_config, fields, match):
    with pytest.raises(ValueError, match=match):
        HGKDConfig.for_teacher(teacher, student_config, **{"image_size": 64, **fields})


def test_another_teacher_is_refused(hgkd, vit):
    with pytest.raises(ValueError, match=r"hidden_sizes is \(32,\), but this model was built for \[32, 32\]"):
        hgkd.attach_teacher(PatchTeacher(vit, layers=(1,)))


def test_feature_term_without_known_teacher(student_config):
    with pytest.raises(ValueError, match="no teacher_hidden_sizes are known"):
        HGKDForPreTraining(HGKDConfig(student_config=student_config, image_size=64))

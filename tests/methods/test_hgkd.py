import json

import pytest
import torch
from transformers import AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig, SparseUNetModel
from hgkd_hf.hub.papers import METHOD_NOTES
from hgkd_hf.methods.hgkd.modeling import aligned_teacher_image_size
from hgkd_hf.objectives.feature_regression import TargetNorm
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
    assert [tuple(t.shape) for t in output.feature_targets] == [(2, 32, 8, 8)] * 2


def normalised_by_hand(target, kind):
    """What is predicted of a teacher's map (B, D, h, w)."""
    if kind == "none":
        return target
    mean, var = target.mean(1, keepdim=True), target.var(1, unbiased=False, keepdim=True)
    target = (target - mean) / (var + 1e-6).sqrt()
    if kind == "standardize":
        mean, var = (moment(target, (0, 2, 3), keepdim=True) for moment in (torch.mean, torch.var))
        count = target.numel() / target.shape[1]
        target = (target - mean) / (var * (count - 1) / count + 1e-5).sqrt()
    return target


@pytest.mark.parametrize("positions", ["all", "masked", "visible"])
@pytest.mark.parametrize("target_norm", ["standardize", "layer-norm", "none"])
def test_loss_by_hand(teacher, student_config, positions, target_norm):
    """Smooth L1 (beta 2) of predictions and normalised targets, over tokens and channels, then over layers."""
    pixel_values, mask = batch()
    settings = {"image_size": 64, "positions": positions, "target_norm": target_norm, "mask_ratio": 0.6}
    settings |= {"loss": "smooth-l1", "smooth_l1_beta": 2.0}
    model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, **settings)).attach_teacher(teacher)
    output = model(pixel_values, mask)
    chosen = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    chosen = {"all": torch.ones_like(chosen), "masked": chosen, "visible": ~chosen}[positions]
    losses = []
    for prediction, target in zip(output.feature_predictions, model.teach(pixel_values, mask).feature_maps):
        distance = (prediction - normalised_by_hand(target, target_norm)).abs()
        cost = torch.where(distance < 2, distance**2 / 4, distance - 1).mean(1)
        losses.append((cost * chosen).sum() / chosen.sum())
    torch.testing.assert_close(output.loss, sum(losses) / 2)


def test_standardized_targets_ignore_the_scale_of_channels():
    """In training every channel has mean 0 and variance 1; in eval mode the running statistics of the file count."""
    norm = TargetNorm("standardize", 8)
    maps = [torch.randn(4, 8, 5, 5) * torch.arange(1, 9).view(8, 1, 1) + 3 for _ in range(300)]
    targets = norm(maps[0])
    torch.testing.assert_close(targets.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std((0, 2, 3)), torch.ones(8), atol=0.02, rtol=0)
    for target in maps:
        norm(target)
    again = TargetNorm("standardize", 8).eval()
    again.load_state_dict(norm.state_dict())
    torch.testing.assert_close(again(torch.cat(maps)).std((0, 2, 3)), torch.ones(8), atol=0.05, rtol=0)


def test_standardised_targets_of_chosen_positions():
    """LayerNorm makes (1, -1) of (1, -1) and of (3, 1): so go the running means; other positions count nowhere."""
    norm = TargetNorm("standardize", 2)
    target = torch.tensor([[[[9.0, 1.0, 9.0, 3.0]], [[9.0, -1.0, 9.0, 1.0]]]])
    chosen = torch.tensor([[[False, True, False, True]]])
    normalised = norm(target, chosen)
    layer_normed = torch.tensor([1.0, 1.0]), torch.tensor([-1.0, -1.0])
    assert not normalised[0, :, 0, ::2].any()
    for channel, values in enumerate(layer_normed):
        torch.testing.assert_close(norm.statistics.running_mean[channel], 0.02 * values.mean(), atol=1e-4, rtol=0)
    both = torch.randn(3, 2, 4, 4)
    everywhere = torch.ones(3, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(TargetNorm("standardize", 2)(both, everywhere), TargetNorm("standardize", 2)(both))


def test_configs_of_before_target_norm_load_as_they_were(hgkd, tmp_path):
    hgkd.config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    assert saved.pop("target_norm") == "whiten"
    file.write_text(json.dumps(saved))
    assert HGKDConfig.from_pretrained(tmp_path).target_norm == "layer-norm"


def test_without_a_decoder_two_linear_maps_of_the_encoder_predict(teacher, student_config):
    """The default where nothing is hidden: 1x1 convolutions of the two deepest maps, summed at the finer's size."""
    config = HGKDConfig.for_teacher(teacher, student_config, image_size=64, low_resolution_share=0)
    model = HGKDForPreTraining(config).attach_teacher(teacher)
    assert (config.decoder, model.student.decoder, model.extended_student) == ("none", None, None)
    pixel_values, _ = batch()
    states = model.encoder(pixel_values, output_hidden_states=True).hidden_states
    fine, deep = (states[scale.index] for scale in model.student.scales[-2:])
    assert fine.shape[-1] == 2 * deep.shape[-1]
    for head, prediction in zip(model.feature_heads, model(pixel_values).feature_predictions):
        of_fine, of_deep = (
            torch.einsum("oi,bihw->bohw", layer.weight[..., 0, 0], x) + layer.bias.view(-1, 1, 1)
            for layer, x in zip(head.projections, (fine, deep))
        )
        wanted = of_fine + torch.nn.functional.interpolate(of_deep, scale_factor=2, mode="bilinear")
        wanted = wanted if wanted.shape[-1] == 8 else torch.nn.functional.interpolate(wanted, (8, 8), mode="bilinear")
        torch.testing.assert_close(prediction, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "decoder"),
    [
        ({}, "none"),
        ({"decoder": "truncated"}, "truncated"),
        ({"mask_ratio": 0.6}, "truncated"),
        ({"mask_ratio": 0.6, "decoder": "full"}, "full"),
    ],
)
def test_a_mask_needs_a_decoder(teacher, student_config, fields, decoder):
    model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, image_size=64, **fields))
    assert model.config.decoder == decoder
    assert (model.student.decoder is None) == (decoder == "none")


def test_configs_of_before_there_was_a_choice_keep_their_decoder(teacher, student_config, tmp_path):
    HGKDConfig.for_teacher(teacher, student_config, image_size=64, decoder="truncated").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    del saved["decoder"]
    file.write_text(json.dumps(saved))
    assert HGKDConfig.from_pretrained(tmp_path).decoder == "truncated"


def test_low_resolution_first(teacher, student_config, monkeypatch):
    """Of 4x4 cells 3x3, in training and before the share is done; the teacher sees its own size all the time."""
    settings = {"image_size": 64, "mask_ratio": 0.0, "low_resolution_share": 0.6}
    model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, **settings)).attach_teacher(teacher)
    seen = []
    model.student.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    pixel_values, mask = batch()
    for model.progress in (0.0, 0.59, 0.6, 0.9):
        output = model(pixel_values, mask)
        assert [tuple(p.shape) for p in output.feature_predictions] == [(2, 32, 8, 8)] * 2
    model.progress = 0.0
    model.eval()(pixel_values, mask)
    assert seen == [(48, 48), (48, 48), (64, 64), (64, 64), (64, 64)]


def test_nothing_is_hidden_in_the_last_steps(vit, student_config):
    """Nor from the teacher; positions then are all."""
    teacher = PatchTeacher(vit, layers=(-1,), teacher_input="visible")
    settings = {"image_size": 64, "mask_ratio": 0.6, "unmasked_share": 0.25, "positions": "visible"}
    model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, **settings)).attach_teacher(teacher)
    pixel_values, mask = batch()
    hidden = []
    for model.progress in (0.0, 0.74, 0.75, 0.99):
        output = model(pixel_values, mask)
        hidden.append(int(output.bool_masked_pos.sum()))
        zeros = (output.feature_targets[0] == 0).all(1)
        assert torch.equal(zeros, output.bool_masked_pos.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert hidden == [int(mask.sum())] * 2 + [0] * 2
    model.eval()
    assert model(pixel_values, mask).bool_masked_pos.any()


@pytest.mark.parametrize(("cells", "wanted"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 5), (12, 8)])
def test_low_resolution_is_about_two_thirds(student_config, cells, wanted):
    config = HGKDConfig(student_config=student_config, image_size=16 * cells, mask_ratio=0.0)
    assert config.low_resolution == (16 * wanted, 16 * wanted)


@pytest.mark.parametrize("decoder", ["truncated", "full"])
@pytest.mark.parametrize("image_size", [32, 64, 128], ids=lambda size: f"{size // 8} tokens")
def test_predictions_at_hidden_places_see_what_is_visible(vit, student_config, decoder, image_size):
    """A decoder whose grid is that of the cells, too: else every hidden position got the same vector."""
    teacher = PatchTeacher(vit, layers=(-1,), image_size=image_size)
    config = HGKDConfig.for_teacher(teacher, student_config, image_size=64, mask_ratio=0.6, decoder=decoder)
    model = HGKDForPreTraining(config).attach_teacher(teacher)
    pixel_values, mask = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        model(pixel_values, mask).loss.backward()
        optimizer.step()
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    changed = torch.where(hidden, pixel_values, torch.randn_like(pixel_values))
    tokens = image_size // 32
    hidden = mask.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)
    model.eval()
    before, after = (
        model(pixels, mask).feature_predictions[0].movedim(1, -1)[hidden] for pixels in (pixel_values, changed)
    )
    assert (before - after).abs().max() > 1e-6
    assert before.std(0).max() > 1e-6


def test_a_decoder_from_before_the_context_block_computes_what_it_did(student_config):
    student_config.decoder_stride = student_config.total_stride
    model = SparseUNetModel(student_config)
    fresh = SparseUNetModel(student_config)
    old = {name: value for name, value in model.state_dict().items() if ".context." not in name}
    assert fresh.load_state_dict(old, strict=False).missing_keys
    pixel_values, mask = batch()
    decoder = fresh.eval().decoder
    torch.nn.init.normal_(decoder.context.pointwise.weight)
    with_block = fresh(pixel_values, mask).last_hidden_state
    decoder.context = None
    assert torch.equal(with_block, fresh(pixel_values, mask).last_hidden_state)


def test_teacher_sees_the_same_image_with_its_own_normalisation(hgkd, teacher):
    mask = batch()[1]
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (hgkd.config.image_mean, hgkd.config.image_std))
    for one, other in zip(hgkd.teach((images - mean) / std, mask).feature_maps, teacher(images).feature_maps):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_hidden_pixels_reach_the_loss_through_the_teacher_only(hgkd):
    pixel_values, mask = batch()
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    changed = torch.where(hidden, torch.randn_like(pixel_values), pixel_values)
    one, other = hgkd.eval()(pixel_values, mask), hgkd(changed, mask)
    assert torch.equal(one.feature_predictions[0], other.feature_predictions[0])
    assert not torch.equal(one.feature_targets[0], other.feature_targets[0])


def test_perfect_prediction_costs_nothing():
    from hgkd_hf.objectives.feature_regression import feature_regression_loss

    target = torch.randn(2, 16, 4, 4)
    for loss in ("cosine+smooth-l1", "smooth-l1", "mse", "cosine"):
        assert feature_regression_loss(target, target, None, loss) < 1e-6


def test_combined_loss_by_hand():
    """Of one position with two channels: 1 - cos((3, 4), (4, 3)) = 1 - 24/25, and |d| = 1 costs 1/2 with beta 1."""
    from hgkd_hf.objectives.feature_regression import feature_regression_loss

    prediction, target = (torch.tensor(values).view(1, 2, 1, 1) for values in ([3.0, 4.0], [4.0, 3.0]))
    loss = feature_regression_loss(prediction, target, None, "cosine+smooth-l1", beta=1.0)
    torch.testing.assert_close(loss, torch.tensor(0.04 + 0.5))


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
    model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, image_size=64, mask_ratio=0.6))
    model.attach_teacher(teacher)
    pixel_values, mask = batch()
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    changed = torch.where(hidden, torch.randn_like(pixel_values), pixel_values)
    one, other = model.eval()(pixel_values, mask), model(changed, mask)
    assert one.feature_targets[0].shape == (2, 24, 8, 8)
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
        ({"teacher_input": "visible"}, "but positions is 'all': set it to 'visible'"),
        ({"unmasked_share": 0.3, "mask_ratio": 0.6, "positions": "masked"}, "leaves steps without a hidden position"),
        ({"low_resolution_share": 0.5, "mask_ratio": 0.6}, "low_resolution_share 0.5 changes the grid"),
        ({"low_resolution_share": 1.0}, "low_resolution_share is 1.0, but it must be at least 0 and below 1"),
        ({"target_norm": "batch"}, "target_norm is 'batch': choose one of whiten, standardize, layer-norm, none"),
        ({"loss": "l3"}, "loss is 'l3': choose one of cosine\\+smooth-l1, smooth-l1, mse, cosine"),
        ({"positions": "some"}, "positions is 'some'"),
        ({"decoder": "half"}, "decoder is 'half'"),
        ({"decoder": "none", "mask_ratio": 0.6}, "decoder 'none' cannot infer what mask_ratio 0.6 hides"),
        ({"decoder": "none", "pixel_weight": 1.0}, "pixel_weight 1.0 needs the whole decoder"),
        ({"pixel_weight": 1.0}, "pixel_weight 1.0 needs the whole decoder: set decoder to 'full'"),
        ({"feature_weight": 0}, "one must be above 0"),
        ({"image_size": 96}, "8x8 tokens do not divide the 6x6 mask cells .* change teacher_image_size"),
    ],
)
def test_bad_config(teacher, student_config, fields, match):
    with pytest.raises(ValueError, match=match):
        HGKDConfig.for_teacher(teacher, student_config, **{"image_size": 64, **fields})


def test_another_teacher_is_refused(hgkd, vit):
    with pytest.raises(ValueError, match=r"hidden_sizes is \(32,\), but this model was built for \(32, 32\)"):
        hgkd.attach_teacher(PatchTeacher(vit, layers=(1,)))


def test_feature_term_without_known_teacher(student_config):
    with pytest.raises(ValueError, match="no teacher_hidden_sizes are known"):
        HGKDForPreTraining(HGKDConfig(student_config=student_config, image_size=64))


def test_the_card_tells_which_positions_are_predicted():
    """By default every one is."""
    assert HGKDConfig().positions == "all"
    assert "hidden" not in METHOD_NOTES["hgkd"].summary
    assert "hidden" in METHOD_NOTES["spark"].summary

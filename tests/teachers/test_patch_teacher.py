"""`PatchTeacher`: any ViT's layers as feature maps, with masked inputs, and what it refuses."""

import pytest
import torch
import transformers as tf
from tiny_teachers import BUILD, FLAT, TEXT, VIT, build, images

from hgkd_hf.teachers import PatchTeacher


def most_changed(before, after):
    """(row, column) of the token that differs most between two (1, D, th, tw) maps, its image."""
    change = (after - before).norm(dim=1)[0]
    return divmod(int(change.argmax()), change.shape[1])


@pytest.mark.parametrize("image_size", [None, (96, 128)])
@pytest.mark.parametrize("name", BUILD)
def test_a_changed_patch_moves_its_own_token_most(name, image_size):
    teacher = PatchTeacher(build(name), image_size=image_size)
    side = teacher.patch_size
    height, width = image_size or (64, 64)
    assert teacher.grid == (height // side, width // side)
    image = images(height, width, batch=1)
    row, column = 1, teacher.grid[1] - 2  # off the diagonal: a transposed grid is found out
    changed = image.clone()
    changed[..., row * side : (row + 1) * side, column * side : (column + 1) * side] = (
        1 - image[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
    )
    before, after = teacher(image), teacher(changed)
    (feature_map,) = before.feature_maps
    assert feature_map.shape == (1, teacher.hidden_sizes[0], *teacher.grid)
    assert most_changed(feature_map, after.feature_maps[0]) == (row, column)
    torch.testing.assert_close(before.pooled, feature_map.mean((2, 3)))


@pytest.mark.parametrize("name", FLAT)
def test_layers_are_the_models_own_hidden_states_and_cutting_changes_nothing(name):
    model = build(name)
    teacher = PatchTeacher(model, layers=(1, 2, 3, -1), image_mean=(0, 0, 0), image_std=(1, 1, 1))
    pixels = images(64, 64)
    extra = {}
    if "mae" in name:
        teacher.encoder.config.mask_ratio = 0.0
        extra["noise"] = torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        expected = teacher.encoder(pixels, output_hidden_states=True, **extra)
    maps = teacher(pixels).feature_maps
    for feature_map, tokens in zip(maps, (*expected.hidden_states[1:4], expected.last_hidden_state)):
        assert torch.equal(feature_map.flatten(2).mT, tokens[:, -16:])

    cut = PatchTeacher(build(name), layers=(2, 1), image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert cut.num_parameters() < teacher.num_parameters()
    second, first = cut(pixels).feature_maps
    assert torch.equal(second, maps[1])
    assert torch.equal(first, maps[0])


@pytest.mark.parametrize("name", FLAT)
def test_the_mean_of_the_upper_half_is_that_of_normalised_hidden_states(name):
    """The default; of three blocks the second and third. Beside others it is the same."""
    teacher = PatchTeacher(build(name), layers=None, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert teacher.layers == (0,)
    pixels, extra = images(64, 64), {}
    if "mae" in name:
        teacher.encoder.config.mask_ratio = 0.0
        extra["noise"] = torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        states = teacher.encoder(pixels, output_hidden_states=True, **extra).hidden_states[2:4]
    normalised = [(x - x.mean(-1, True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() for x in states]
    (mean,) = teacher(pixels).feature_maps
    torch.testing.assert_close(mean.flatten(2).mT, sum(normalised)[:, -16:] / 2)

    several = PatchTeacher(build(name), layers=(1, 0, -1), image_mean=(0, 0, 0), image_std=(1, 1, 1))
    first, again, final = several(pixels).feature_maps
    assert torch.equal(again, mean)
    assert (first - final).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in BUILD if name not in FLAT])
def test_without_plain_blocks_the_default_is_the_final_output(name):
    assert PatchTeacher(build(name), layers=None).layers == (-1,)
    with pytest.raises(ValueError, match=r"must be -1 \(final output\), not 0"):
        PatchTeacher(build(name), layers=(0,))


@pytest.mark.parametrize("image_size", [64, (96, 128)])
@pytest.mark.parametrize("name", [name for name in FLAT if name != "vit_mae"])
def test_hidden_pixels_never_reach_a_masked_teacher(name, image_size):
    """NaN in hidden cells would spread through attention, and through the resize from 48 pixels as well."""
    teacher = PatchTeacher(build(name), layers=(1, -1), image_size=image_size, teacher_input="masked")
    mask = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    clean = images(48, 48)
    spoiled = clean.masked_fill(mask.repeat_interleave(24, 1).repeat_interleave(24, 2).unsqueeze(1), torch.nan)
    for a, b in zip(teacher(clean, mask).feature_maps, teacher(spoiled, mask).feature_maps):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    visible = clean.clone()
    visible[:, :, :24, 24:] = 0  # visible in the first image only
    moved = (teacher(visible, mask).feature_maps[-1] - teacher(clean, mask).feature_maps[-1]).abs().amax((1, 2, 3))
    assert moved[0] > 1e-4
    assert moved[1] == 0


DROPS = [name for name in FLAT if name not in ("beit", "data2vec", "dinov3")]


@pytest.mark.parametrize("name", DROPS)
def test_a_teacher_of_visible_tokens_never_meets_the_others(name):
    """Hidden pixels do not matter, maps are zero there, special tokens stay, and nothing hidden is nothing dropped."""
    layers, size = (1, -1), 64
    teacher = PatchTeacher(build(name), layers=layers, teacher_input="visible")
    lengths = []
    teacher._blocks[1].register_forward_pre_hook(lambda block, args: lengths.append(args[0].shape[1]))
    mask = torch.tensor([[[True, False], [False, True]], [[False, True], [True, True]]])
    with pytest.raises(ValueError, match=r"same number \(above 0\) of visible ones in every image, but .* \[8, 4\]"):
        teacher(images(size, size), mask)
    mask[1, 1, 1] = False
    clean = images(size, size)
    spoiled = clean.masked_fill(mask.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1), torch.nan)
    output, again = teacher(clean, mask), teacher(spoiled, mask)
    whole = PatchTeacher(build(name), layers=layers)(clean)
    special = lengths[-1] - 8
    assert special in (0, 1, 2, 3, 4, 5)
    hidden = mask.repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1)
    for a, b, c in zip(output.feature_maps, again.feature_maps, whole.feature_maps):
        assert torch.equal(a, b)
        assert a.shape == c.shape
        assert not a.masked_select(hidden).any()
        assert not torch.allclose(a.masked_select(~hidden), c.masked_select(~hidden))  # fewer tokens to attend to
    last = output.feature_maps[-1]
    torch.testing.assert_close(output.pooled, last.sum((2, 3)) / 8)
    nothing = torch.zeros_like(mask)
    for a, b in zip(teacher(clean, nothing).feature_maps, whole.feature_maps):
        torch.testing.assert_close(a, b)


def test_visible_tokens_are_those_of_the_model_without_the_others():
    """By hand: the embeddings of the class token and of the visible patches, through the blocks."""
    model = build("vit")
    teacher = PatchTeacher(model, layers=(2,), image_mean=(0, 0, 0), image_std=(1, 1, 1), teacher_input="visible")
    pixels = images(64, 64, batch=1)
    mask = torch.tensor([[[True, True], [True, False]]])
    with torch.no_grad():
        states = model.embeddings(pixels)[:, [0, 1 + 10, 1 + 11, 1 + 14, 1 + 15]]
        for block in model.layers[:2]:
            states = block(states)
    (feature_map,) = teacher(pixels, mask).feature_maps
    torch.testing.assert_close(feature_map[..., 2:, 2:].flatten(2).mT, states[:, 1:])


@pytest.mark.parametrize("name", ["beit", "data2vec", "dinov3", "swin", "hiera"])
def test_teachers_whose_tokens_cannot_be_dropped_are_refused(name):
    with pytest.raises(ValueError, match="relative ones: use|merges patches from stage to stage: use"):
        PatchTeacher(build(name), teacher_input="visible")


@pytest.mark.parametrize("name", ["vit", "beit", "dinov2", "dinov2_registers", "dinov3", "clip"])
def test_masked_input_equals_the_models_own_mask_token(name):
    model = build(name)
    if name == "vit":
        model = tf.ViTModel(model.config, use_mask_token=True).eval()
        torch.nn.init.normal_(model.embeddings.mask_token)
    teacher = PatchTeacher(model, image_mean=(0, 0, 0), image_std=(1, 1, 1), teacher_input="masked")
    pixels, mask = images(64, 64), torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    tokens = teacher(pixels, mask).feature_maps[0].flatten(2).mT
    with torch.no_grad():
        if name == "clip":  # no mask token: black pixels give zero in a convolution without bias
            expected = teacher.model(pixels * ~mask.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1))
        else:
            expected = teacher.model(pixels, bool_masked_pos=mask.flatten(1))
    torch.testing.assert_close(tokens, expected.last_hidden_state[:, -16:], atol=1e-5, rtol=1e-4)
    assert (tokens - PatchTeacher(model)(pixels).feature_maps[0].flatten(2).mT).abs().max() > 1e-3


def test_mae_decoder_infers_the_whole_grid_from_visible_tokens():
    model = build("vit_mae_pretraining")
    teacher = PatchTeacher(
        model, layers=None, image_mean=(0, 0, 0), image_std=(1, 1, 1), image_size=(96, 128), teacher_input="masked"
    )
    assert teacher.layers == (1,)  # the middle of three decoder blocks
    assert teacher.hidden_sizes == (24,)
    mask = torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(0)) > 0.4
    seen = []
    handle = teacher.encoder.layers[0].register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    image = images(96, 128, batch=1)
    before = teacher(image, mask).feature_maps[0]
    assert seen == [1 + int((~mask).sum())]
    handle.remove()
    row, column = [int(i) for i in (~mask[0]).nonzero()[5]]
    image[..., row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 0
    assert most_changed(before, teacher(image, mask).feature_maps[0]) == (row, column)

    uneven = torch.zeros(2, 6, 8, dtype=torch.bool)
    uneven[0, 0, 0] = True
    with pytest.raises(ValueError, match="same number"):
        teacher(images(96, 128), uneven)


def test_mae_decoder_equals_the_models_own_at_its_native_size():
    model = build("vit_mae_pretraining")
    teacher = PatchTeacher(model, image_mean=(0, 0, 0), image_std=(1, 1, 1), teacher_input="masked")
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :3, :3] = True
    pixels = images(64, 64)
    features = teacher(pixels, mask).feature_maps[0].flatten(2).mT
    model.config.mask_ratio = 9 / 16
    with torch.no_grad():
        expected = model(pixels, noise=mask.flatten(1).float() + torch.arange(16) / 100).logits
        torch.testing.assert_close(model.decoder.decoder_pred(features), expected)


def test_mae_decoder_positions_follow_rows_and_columns_to_another_grid():
    model = build("vit_mae_pretraining")
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    with torch.no_grad():
        model.decoder.decoder_pos_embed[0, 1:, 0] = rows.flatten()
        model.decoder.decoder_pos_embed[0, 1:, 1] = columns.flatten()
    PatchTeacher(model, image_size=(96, 128), teacher_input="masked")
    row, column = model.decoder.decoder_pos_embed[0, 1:, :2].unflatten(0, (6, 8)).unbind(-1)
    torch.testing.assert_close(row, row[:, :1].expand(6, 8))
    torch.testing.assert_close(column, column[:1].expand(6, 8))
    assert (row[:, 0].diff() > 0).all()
    assert (column[0].diff() > 0).all()


def test_every_visible_count_of_a_mae_survives_rounding():
    teacher = PatchTeacher(build("vit_mae_pretraining"), image_size=(112, 112), teacher_input="masked")
    seen = []
    teacher.encoder.layers[0].register_forward_hook(lambda module, args, output: seen.append(output.shape[1] - 1))
    for visible in range(1, 50):
        teacher(images(112, 112, batch=1), (torch.arange(49) >= visible).view(1, 7, 7))
    assert seen == list(range(1, 50))


@pytest.mark.parametrize("name", ["swin", "hiera"])
def test_hierarchical_teachers_have_a_final_map_and_no_masked_input(name):
    teacher = PatchTeacher(build(name))
    assert (teacher.patch_size, teacher.grid) == (8, (8, 8))
    with pytest.raises(ValueError, match=f"masked.*{name}"):
        PatchTeacher(build(name), teacher_input="masked")
    with pytest.raises(ValueError, match=r"layers .*-1 .*not 1"):
        PatchTeacher(build(name), layers=(1,))


def test_preprocessing_resizes_normalises_and_casts():
    teacher = PatchTeacher(build("vit"), image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7))
    seen = []
    teacher.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.full((1, 3, 40, 80), 0.4)
    image[..., :40] = 1.0  # an edge: bicubic overshoots beyond 1 without the clamp
    teacher(image)
    teacher.to(torch.bfloat16)
    assert teacher(images(64, 64)).feature_maps[0].dtype == torch.float32
    resized, cast = seen
    assert resized.shape == (1, 3, 64, 64)
    torch.testing.assert_close(resized.amax((0, 2, 3)), torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]))
    assert cast.dtype == torch.bfloat16


def test_a_teacher_stays_frozen_and_its_features_serve_autograd():
    model = build("vit_msn")
    teacher = torch.nn.ModuleList([PatchTeacher(model)]).train()[0]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    target = teacher(images(64, 64)).feature_maps[0]
    assert not target.requires_grad
    student = torch.zeros_like(target, requires_grad=True)
    (student * target).sum().backward()  # inference_mode's tensors would raise here
    assert torch.equal(student.grad, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": 225},
            "225 is not a multiple of its 16-pixel patches: set image_size to 224 or 240",
        ),
        ({"image_size": (64, 8)}, "set image_size to 16"),
        ({"layers": (-2,)}, r"-1 \(final output\), 1 to 3 \(blocks\) or 0 .*not -2"),
        ({"layers": (1, 4)}, "1 to 3 .*not 4"),
        ({"layers": ()}, "layers"),
        ({"teacher_input": "half"}, "teacher_input is 'half'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchTeacher(build("vit"), **arguments)


def test_wrong_inputs_are_named():
    teacher = PatchTeacher(build("vit"), teacher_input="masked")
    with pytest.raises(ValueError, match="bool_masked_pos"):
        teacher(images(64, 64))
    with pytest.raises(ValueError, match="bool_masked_pos"):
        teacher(images(64, 64), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"4x4 grid .* 3x3"):
        teacher(images(48, 48), torch.zeros(2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="images"):
        teacher(images(64, 64)[0])
    with pytest.raises(ValueError, match="decoder"):
        PatchTeacher(build("vit_mae"), teacher_input="masked")


@pytest.mark.parametrize(
    "model",
    [
        lambda: tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])),
        lambda: tf.ConvNextModel(tf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 8], depths=[1, 1])),
        lambda: tf.BertModel(tf.BertConfig(**TEXT)),
        lambda: tf.YolosModel(tf.YolosConfig(**{**VIT, "image_size": [64, 64]}, num_detection_tokens=5)),
        lambda: tf.MobileViTModel(tf.MobileViTConfig(hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8] * 7)),
    ],
)
def test_what_is_no_vit_is_refused(model, tmp_path, monkeypatch):
    model = model()
    with pytest.raises(ValueError, match=f"{model.config.model_type} model, .*`teacher`"):
        PatchTeacher(model)
    model.save_pretrained(tmp_path)
    if model.config.model_type != "mobilevit":  # whose config looks like a ViT's
        monkeypatch.setattr(tf.AutoModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("weights loaded"))
    with pytest.raises(ValueError, match=f"{model.config.model_type} model, .*`teacher`"):
        PatchTeacher.from_pretrained(tmp_path)

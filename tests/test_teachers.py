import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import GatedRepoError

from hgkd_hf.teachers import PatchTeacher, checkpoint, patch_teacher

SHARED = Path(__file__).parents[2] / "shared"
TINY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 3}
VIT = {**TINY, "image_size": 64, "patch_size": 16}
MAE = {
    **VIT,
    "decoder_hidden_size": 24,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "decoder_num_hidden_layers": 3,
}
TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 8}
DUAL = {"text_config": TEXT, "vision_config": VIT}
HIERARCHICAL = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}

BUILD = {
    "vit": lambda: tf.ViTModel(tf.ViTConfig(**VIT)),
    "vit_classifier": lambda: tf.ViTForImageClassification(tf.ViTConfig(**VIT)),
    "deit": lambda: tf.DeiTModel(tf.DeiTConfig(**VIT)),
    "beit": lambda: tf.BeitModel(tf.BeitConfig(**VIT, use_relative_position_bias=True, use_mask_token=True)),
    "data2vec": lambda: tf.Data2VecVisionModel(tf.Data2VecVisionConfig(**VIT, use_relative_position_bias=True)),
    "vit_mae": lambda: tf.ViTMAEModel(tf.ViTMAEConfig(**MAE)),
    "vit_mae_pretraining": lambda: tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**VIT)),
    "dinov2_registers": lambda: tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**VIT)),
    "dinov3": lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VIT, num_register_tokens=2)),
    "clip": lambda: tf.CLIPModel(tf.CLIPConfig(**DUAL)),
    "clip_vision": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**VIT)),
    "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(**DUAL)),
    "siglip_vision": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**VIT)),
    "ijepa": lambda: tf.IJepaModel(tf.IJepaConfig(**VIT)),
    "vit_msn": lambda: tf.ViTMSNModel(tf.ViTMSNConfig(**VIT)),
    "swin": lambda: tf.SwinModel(tf.SwinConfig(**HIERARCHICAL, image_size=64, patch_size=4, window_size=4)),
    "hiera": lambda: tf.HieraModel(
        tf.HieraConfig(**HIERARCHICAL, image_size=[64, 64], num_query_pool=1, masked_unit_attention=[True, False])
    ),
}
FLAT = [name for name in BUILD if name not in ("swin", "hiera")]


def build(name, seed=0):
    """A tiny random model whose every weight (positions and mask tokens too, mostly zero by default) matters."""
    torch.manual_seed(seed)
    model = BUILD[name]()
    for key, parameter in model.named_parameters():
        if any(part in key for part in ("position", "pos_embed", "token", "relative", "projection", "patch_emb")):
            torch.nn.init.normal_(parameter, std=0.2)
        elif "lambda" in key or "layer_scale" in key:
            torch.nn.init.ones_(parameter)
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def images(*size, batch=2, seed=1):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


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
        ({"image_size": 225}, "image_size 225 is no multiple of its 16-pixel patches: set image_size to 224 or 240"),
        ({"image_size": (64, 8)}, "set image_size to 16"),
        ({"layers": (0,)}, "1 to 3 .*not 0"),
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


@pytest.mark.parametrize("name", BUILD)
def test_from_pretrained_restores_the_model(name, tmp_path):
    model = build(name)
    for parameter in model.parameters():
        parameter.data = parameter.half()
    model.save_pretrained(tmp_path)
    teacher = PatchTeacher.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert not any("text" in key or "decoder" in key for key, _ in teacher.named_parameters())
    assert (teacher.name_or_path, teacher.revision) == (str(tmp_path), None)
    pixels = images(64, 64)
    assert torch.equal(teacher(pixels).feature_maps[0], PatchTeacher(model.float())(pixels).feature_maps[0])


def test_masked_from_pretrained_loads_the_mask_token_or_the_decoder(tmp_path):
    source = tf.ViTForMaskedImageModeling(tf.ViTConfig(**VIT, encoder_stride=16))
    torch.nn.init.normal_(source.vit.embeddings.mask_token)
    source.save_pretrained(tmp_path / "simmim")
    teacher = PatchTeacher.from_pretrained(tmp_path / "simmim", teacher_input="masked")
    assert torch.equal(teacher.model.embeddings.mask_token, source.vit.embeddings.mask_token)

    build("clip").save_pretrained(tmp_path / "clip")  # has no mask token: zero
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    blind = PatchTeacher.from_pretrained(tmp_path / "clip", teacher_input="masked")(images(64, 64), mask)
    assert torch.equal(blind.pooled[0], blind.pooled[1])

    build("vit_mae_pretraining").save_pretrained(tmp_path / "mae")
    assert PatchTeacher.from_pretrained(tmp_path / "mae", teacher_input="masked", layers=None).hidden_sizes == (24,)
    build("vit_mae").save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"lacks .* weights of ViTMAEForPreTraining"):
        PatchTeacher.from_pretrained(tmp_path / "encoder", teacher_input="masked")


@pytest.mark.parametrize(
    ("processor", "mean"),
    [
        ({"image_processor_type": "DINOv3ViTImageProcessor", "image_mean": [0.1] * 3, "image_std": [0.5] * 3}, 0.1),
        ({"image_processor_type": "ViTImageProcessor", "do_normalize": False}, 0.0),
        (None, 0.485),
    ],
)
def test_normalisation_comes_from_the_checkpoint(tmp_path, processor, mean):
    build("dinov3").save_pretrained(tmp_path)
    if processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert PatchTeacher.from_pretrained(tmp_path).image_mean.flatten()[0].item() == pytest.approx(mean)


def test_revision_is_the_hubs_commit_and_every_file_is_taken_from_it(monkeypatch):
    asked = []

    def commit(self, repo_id, revision=None, **kwargs):
        return type("Info", (), {"sha": "a" * 40})

    def config(name, revision=None, **kwargs):
        asked.append(revision)
        raise OSError("stop here")

    monkeypatch.setattr(checkpoint.HfApi, "model_info", commit)
    monkeypatch.setattr(patch_teacher.AutoConfig, "from_pretrained", config)
    with pytest.raises(OSError, match="stop here"):
        PatchTeacher.from_pretrained("someone/vit", revision="main")
    assert asked == ["a" * 40]


def test_without_network_a_cached_teacher_loads_and_knows_its_commit(tmp_path, monkeypatch):
    sha = "0123456789" * 4
    repo = tmp_path / "models--someone--vit"
    build("vit").save_pretrained(repo / "snapshots" / sha)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(sha)

    def unreachable(self, *args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(checkpoint.HfApi, "model_info", unreachable)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    teacher = PatchTeacher.from_pretrained("someone/vit")
    assert (teacher.name_or_path, teacher.revision) == ("someone/vit", sha)


def test_a_gated_teacher_says_where_to_ask(monkeypatch):
    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.") from GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(patch_teacher, "resolve_revision", lambda *args: None)
    monkeypatch.setattr(patch_teacher.AutoConfig, "from_pretrained", gated)
    with pytest.raises(PermissionError, match=r"huggingface.co/meta/dino.*hf auth login"):
        PatchTeacher.from_pretrained("meta/dino")


def test_pickled_weights_are_refused(tmp_path):
    model = build("vit")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        PatchTeacher.from_pretrained(tmp_path)


@pytest.mark.shared_data
def test_a_real_checkpoint_in_half_precision():
    folder = SHARED / "models" / "vit-small-14-saliency"
    if not folder.exists():
        pytest.skip("../shared/models/vit-small-14-saliency is not here")
    teacher = PatchTeacher.from_pretrained(folder, layers=(6, -1), image_size=98)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert (teacher.grid, teacher.hidden_sizes, teacher.patch_size) == ((7, 7), (384, 384), 14)
    assert teacher.image_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    first, second = teacher(images(98, 98)).pooled
    assert 0 < (first - second).norm() < first.norm()

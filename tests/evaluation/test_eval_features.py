from functools import partial

import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hgkd_hf.evaluation import Features, extract_features, pooled_features


def batches(sizes=(3, 2), labels=True):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        batch = {"pixel_values": torch.randn(size, 3, 32, 32, generator=generator)}
        yield batch | ({"labels": torch.arange(size, dtype=torch.int32)} if labels else {})


class Pooled(nn.Module):
    """Notes in which mode it ran; holds a frozen part in evaluation mode, as a distiller holds its teacher."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()
        self.modes = []

    def forward(self, pixel_values):
        self.modes.append((self.training, torch.is_grad_enabled()))
        if pixel_values.sum().isnan():
            raise RuntimeError("broken image")
        return self.norm(pixel_values).mean((2, 3))


def assert_former_mode(module):
    assert module.training
    assert module.norm.training
    assert not module.frozen.training


def test_features_follow_the_batches_and_need_no_gradient():
    module = Pooled().double()
    result = extract_features(lambda x: module(x.double()), batches(), "cpu", module=module)
    expected = torch.cat([batch["pixel_values"].mean((2, 3)) for batch in batches()])
    torch.testing.assert_close(result.features, expected, rtol=1e-4, atol=1e-5)
    assert result.features.dtype == torch.float32
    assert not result.features.requires_grad
    assert result.labels.tolist() == [0, 1, 2, 0, 1]
    assert result.labels.dtype == torch.long
    assert len(result) == 5


@pytest.mark.parametrize("as_argument", [False, True])
def test_the_module_runs_in_eval_mode_and_gets_its_own_mode_back(as_argument):
    module = Pooled()
    statistics = module.norm.running_mean.clone()
    if as_argument:
        extract_features(lambda x: module(x), batches(labels=False), "cpu", module=module)
    else:
        extract_features(module, batches(labels=False), "cpu")
    assert module.modes == [(False, False)] * 2
    assert torch.equal(module.norm.running_mean, statistics)
    assert_former_mode(module)


def test_the_mode_comes_back_after_an_exception():
    module = Pooled()
    with pytest.raises(RuntimeError, match="broken image"):
        extract_features(module, [{"pixel_values": torch.full((1, 3, 4, 4), torch.nan)}], "cpu")
    assert module.modes == [(False, False)]
    assert_former_mode(module)


def test_labels_are_optional():
    assert extract_features(Pooled(), batches(labels=False), "cpu").labels is None


@pytest.mark.parametrize(
    ("model_fn", "data", "message"),
    [
        (Pooled(), [], "no batch"),
        (lambda x: x, batches((2,)), r"\(2, 3, 32, 32\)"),
        (lambda x: {"features": x}, batches((2,)), "dict"),
        (lambda x: x.flatten(1) * torch.nan, batches((2,)), "NaN"),
        (Pooled(), [*batches((2,)), *batches((1,), labels=False)], r"labels have shape \(2,\), expected \(3,\)"),
    ],
)
def test_what_is_no_feature_is_refused(model_fn, data, message):
    with pytest.raises(ValueError, match=message):
        extract_features(model_fn, data, "cpu")


def test_features_are_a_matrix():
    with pytest.raises(ValueError, match=r"\(4,\), expected \(N, D\)"):
        Features(torch.zeros(4))


RESNET = ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
VIT = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)


@pytest.mark.parametrize(
    ("model", "of_output"),
    [
        (partial(ResNetModel, RESNET), lambda out: out.pooler_output[:, :, 0, 0]),
        (partial(ConvNextModel, CONVNEXT), lambda out: out.pooler_output),
        (partial(ViTModel, VIT), lambda out: out.pooler_output),
        (partial(ViTModel, VIT, add_pooling_layer=False), lambda out: out.last_hidden_state.mean(1)),
    ],
    ids=["resnet", "convnext", "vit", "vit without pooler"],
)
def test_pooled_features_of_stock_models(model, of_output):
    model = model().eval()
    pixel_values = next(batches())["pixel_values"]
    pooled = pooled_features(model, pixel_values)
    assert pooled.shape == (3, 16)
    assert torch.equal(pooled, of_output(model(pixel_values)))


def test_a_map_without_pooler_is_averaged_over_space():
    class Map(nn.Module):
        def forward(self, pixel_values):
            return type("Output", (), {"last_hidden_state": pixel_values, "pooler_output": None})

    pixel_values = next(batches())["pixel_values"]
    assert torch.equal(pooled_features(Map(), pixel_values), pixel_values.mean((2, 3)))


@pytest.mark.parametrize("rows", [None, torch.tensor([4, 5, 7])])
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 1])])
@pytest.mark.parametrize("chosen", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_chosen_images_keep_labels_and_rows(rows, labels, chosen):
    features = Features(torch.eye(3), labels, rows)
    some = features.select(chosen)
    indices = chosen.tolist() if chosen.dtype == torch.long else [0, 2]
    assert torch.equal(some.features, torch.eye(3)[indices])
    assert [some.row(place) for place in range(2)] == [features.row(index) for index in indices]
    assert (some.labels is None) if labels is None else (some.labels.tolist() == labels[indices].tolist())


def test_an_image_that_comes_twice_counts_once():
    """In place of one that cannot be read, a dataset gives the next; processes share out the rows."""
    rows = torch.tensor([1, 1, 2, 4, 4, 0])  # rows 0 and 3 were bad: the next came, at the end the first good again
    batches = [{"pixel_values": rows.float().view(-1, 1, 1, 1), "labels": rows % 2, "sample_index": rows}]
    features = extract_features(lambda pixels: pixels.flatten(1), batches, "cpu")
    assert features.rows.tolist() == rows.tolist()
    once = features.each_once()
    assert once.rows.tolist() == once.features[:, 0].tolist() == [0, 1, 2, 4]
    assert once.labels.tolist() == [0, 1, 0, 0]
    assert [once.row(index) for index in range(4)] == [0, 1, 2, 4]
    plain = Features(torch.eye(3))
    assert plain.each_once() is plain
    assert plain.row(2) == 2

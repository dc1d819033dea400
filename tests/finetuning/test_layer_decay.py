import pytest
import torch
from transformers import AutoModel, ConvNextConfig, MobileNetV2Config, ResNetConfig

from hgkd_hf.finetuning.layer_decay import decay_learning_rates, layer_depths
from hgkd_hf.finetuning.registry import TASKS
from hgkd_hf.finetuning.trainer import FineTuningArguments


def resnet(**settings) -> torch.nn.Module:
    config = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return AutoModel.from_config(ResNetConfig(**config | settings))


def test_depth_is_the_scale_that_a_layer_computes():
    depths = layer_depths(resnet())
    # 7x7 of stride 2; max-pooling; a stage at stride 4; a stage at stride 8.
    assert depths["embedder.embedder.convolution.weight"] == 0
    assert depths["encoder.stages.0.layers.0.layer.0.convolution.weight"] == 1
    assert depths["encoder.stages.1.layers.0.layer.0.normalization.bias"] == 2
    assert depths["encoder.stages.1.layers.0.shortcut.convolution.weight"] == 2


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]), 4),
        (MobileNetV2Config(depth_multiplier=0.35), 5),
    ],
    ids=["convnext", "mobilenet_v2"],
)
def test_every_family_has_rising_depths(config, count):
    encoder = AutoModel.from_config(config)
    depths = layer_depths(encoder)
    assert set(depths) == {name for name, _ in encoder.named_parameters()}
    assert set(depths.values()) == set(range(count))
    assert next(iter(depths.values())) == 0


def test_learning_rates_by_hand():
    encoder = resnet()
    head = torch.nn.Linear(32, 2)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in encoder.parameters() if p.dim() > 1] + [head.weight], "weight_decay": 0.1},
            {"params": [p for p in encoder.parameters() if p.dim() == 1] + [head.bias], "weight_decay": 0.0},
        ],
        lr=1.0,
    )
    before = sorted(id(p) for group in optimizer.param_groups for p in group["params"])
    decay_learning_rates(optimizer, encoder, 0.5)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert sorted(rates) == before
    depths = layer_depths(encoder)
    for name, parameter in encoder.named_parameters():  # three depths: the deepest at 1/2, the stem at 1/8
        assert rates[id(parameter)] == (0.5 ** (3 - depths[name]), 0.1 if parameter.dim() > 1 else 0.0)
    assert rates[id(head.weight)] == (1.0, 0.1)
    assert optimizer.param_groups[0]["lr"] == 1.0  # what the log shows


def test_the_encoder_itself_is_left_alone():
    encoder = resnet()
    modes = [module.training for module in encoder.modules()]
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}
    layer_depths(encoder)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in encoder.named_buffers())
    assert not any(module._forward_hooks for module in encoder.modules())


@pytest.mark.parametrize("asked", [None, 0.9])
@pytest.mark.parametrize(
    ("task", "model", "default"),
    [
        ("image-classification", "folder/student", 1.0),
        ("semantic-segmentation", "folder/student", 0.7),
        ("object-detection", "folder/student", 1.0),
        ("semantic-segmentation", "resnet-18", 1.0),
        ("object-detection", '{"model_type": "resnet"}', 1.0),
    ],
)
def test_the_default_is_that_of_the_task_and_of_its_weights(tmp_path, task, model, default, asked):
    arguments = FineTuningArguments(output_dir=str(tmp_path), layer_decay=asked)
    arguments.settle_layer_decay(TASKS[task](dataset="none", model=model))
    assert arguments.layer_decay == (asked or default)

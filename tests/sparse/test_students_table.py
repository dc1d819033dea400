"""docs/students.md: which networks can be students. Run this file to write the page again."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoBackbone,
    AutoModel,
    BitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    EfficientNetConfig,
    FocalNetConfig,
    HGNetV2Config,
    MobileNetV1Config,
    MobileNetV2Config,
    MobileViTConfig,
    PoolFormerConfig,
    PreTrainedConfig,
    RegNetConfig,
    ResNetConfig,
)

from hgkd_hf.sparse import check_exact
from hgkd_hf.sparse import layers as kinds

PAGE = Path(__file__).parents[2] / "docs" / "students.md"
TEXT = """# Students

Written by `python tests/sparse/test_students_table.py`; a test holds it to the code.

A student is a stock `transformers` network, built by `AutoModel`. `sparsify` makes its layers run on visible cells,
and refuses by name what would carry information across the mask. "Exact" means: what every module of a network of the
same configuration, with fewer and narrower layers, gives at visible positions is what the readable reference `masked`
gives (`check_exact`, float64). Gradients and running statistics are held to it, family by family, by
`tests/sparse/test_sparse_families.py`.

Mask cells must be a multiple of the largest stride. "Special" are the layers beyond plain convolutions, BatchNorm and
max pooling. Parameters are counted without a classifier.

| student | configuration | parameters | strides of its maps | special layers | cells | spconv |
|---|---|---:|---|---|---|---|
{students}

Refused, with what `sparsify` or `check_exact` says:

| network | configuration | why |
|---|---|---|
{refused}

`pooler_output` is exact too (the mean over an image's visible positions) where a pooling module makes it; ConvNeXt and
ConvNeXtV2 take that mean in their own forward, so under a mask only their feature maps may be used.

timm's CNNs come through transformers' `TimmWrapperModel` (`pip install "hgkd_hf[timm]"`; timm needs torchvision): by
Hub id, e.g. `timm/resnet18.a1_in1k`, or as a config, `{{"model_type": "timm_wrapper", "architecture": "resnet18"}}`.
`tests/sparse/test_timm.py` holds outputs, gradients and running statistics of these to the reference, on both
backends: resnet10t, resnet18d, resnext26ts, seresnet18, regnetx_002, regnety_002, convnext_atto, convnextv2_atto,
mobilenetv2_050, mobilenetv3_small_050, efficientnet_lite0, efficientnet_b0. Refused are those that pad by the size of
their input (tf_efficientnet_b0) or attend over an image's channels in another way (eca_resnet33ts).

torchvision's CNNs come by the function that builds them (`--student torchvision.models:resnet18`, see
[Teacher and student](choose.md)). `tests/sparse/test_torchvision.py` holds these to the reference: resnet18,
regnet_y_400mf, mobilenet_v2, mobilenet_v3_small, efficientnet_b0, densenet121, shufflenet_v2_x0_5. Its ConvNeXt learns
from whole images only. `make test-timm` runs the tests of timm and torchvision.
"""

BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
FOUR = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}  # makes a network of four stages small
STEM = FOUR | {"embedding_size": 8}
GROUPS = {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 32, 32, 32], "embedding_size": 32, "num_groups": 8}
EFFICIENT = {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}
SAME = {"global_padding": "same", "embedding_dynamic_padding": True}
TENSORFLOW = {"tf_padding": False}

# Name, configuration, and what makes it small for the check.
STUDENTS = [
    ("ResNet-10", ResNetConfig, {"depths": [1, 1, 1, 1], **BASIC}, STEM),
    ("ResNet-18", ResNetConfig, {"depths": [2, 2, 2, 2], **BASIC}, STEM),
    ("ResNet-34", ResNetConfig, {"depths": [3, 4, 6, 3], **BASIC}, STEM),
    ("ResNet-50", ResNetConfig, {"depths": [3, 4, 6, 3]}, STEM),
    ("ResNet-101", ResNetConfig, {"depths": [3, 4, 23, 3]}, STEM),
    ("ResNet-152", ResNetConfig, {"depths": [3, 8, 36, 3]}, STEM),
    (
        "ResNet-18, twice as wide",
        ResNetConfig,
        {**BASIC, "depths": [2] * 4, "hidden_sizes": [128, 256, 512, 1024]},
        STEM,
    ),
    ("ResNet-50, twice as wide", ResNetConfig, {"embedding_size": 128, "hidden_sizes": [512, 1024, 2048, 4096]}, STEM),
    (
        "RegNetX-400MF",
        RegNetConfig,
        {"layer_type": "x", "depths": [1, 2, 7, 12], "hidden_sizes": [32, 64, 160, 400], "groups_width": 16},
        STEM | {"groups_width": 8},
    ),
    (
        "RegNetY-400MF",
        RegNetConfig,
        {"depths": [1, 3, 6, 6], "hidden_sizes": [48, 104, 208, 440], "groups_width": 8},
        STEM,
    ),
    ("ConvNeXt-T", ConvNextConfig, {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}, FOUR),
    ("ConvNeXtV2-atto", ConvNextV2Config, {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}, FOUR),
    ("ConvNeXtV2-pico", ConvNextV2Config, {"depths": [2, 2, 6, 2], "hidden_sizes": [64, 128, 256, 512]}, FOUR),
    ("MobileNetV1", MobileNetV1Config, TENSORFLOW, {"depth_multiplier": 0.125}),
    ("MobileNetV2", MobileNetV2Config, TENSORFLOW, {"depth_multiplier": 0.1}),
    ("MobileNetV2, stride 16", MobileNetV2Config, {**TENSORFLOW, "output_stride": 16}, {"depth_multiplier": 0.1}),
    (
        "EfficientNet-B0",
        EfficientNetConfig,
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
        EFFICIENT,
    ),
    (
        "EfficientNet-B2",
        EfficientNetConfig,
        {"width_coefficient": 1.1, "depth_coefficient": 1.2, "hidden_dim": 1408},
        EFFICIENT,
    ),
    ("BiT-50", BitConfig, {}, GROUPS),
    ("BiT-50, padded as published", BitConfig, SAME, GROUPS),
    ("PoolFormer-S12", PoolFormerConfig, {"depths": [2, 2, 6, 2]}, FOUR),
]
REFUSED = [
    ("MobileNetV1 as published", MobileNetV1Config, {"tf_padding": True}, {"depth_multiplier": 0.125}),
    ("MobileNetV2 as published", MobileNetV2Config, {"tf_padding": True}, {"depth_multiplier": 0.1}),
    ("EfficientNet with maximum", EfficientNetConfig, {"pooling_type": "max"}, EFFICIENT),
    ("BiT, post-activation", BitConfig, {"layer_type": "bottleneck"}, GROUPS),
    ("HGNetV2", HGNetV2Config, {}, {}),
    ("MobileViT", MobileViTConfig, {}, {}),
    ("FocalNet", FocalNetConfig, {}, {"embed_dim": 8, "depths": [1, 1, 1, 1]}),
]
LABELS = {
    kinds.StandardisedConvolution: "weight standardisation",
    kinds.ZeroPadding: "padding layers",
    kinds.AveragePooling: "average pooling",
    kinds.GroupNormalisation: "GroupNorm",
    kinds.GlobalResponseNormalisation: "GRN",
    kinds.Drop: "stochastic depth",
}


def network(kind: type[PreTrainedConfig], options: dict) -> nn.Module:
    auto = AutoBackbone if kind is HGNetV2Config else AutoModel
    return auto.from_config(kind(**options))


def verdict(kind: type[PreTrainedConfig], options: dict, small: dict, backend: str = "cells") -> str | None:
    """What `check_exact` objects to in the small network, None if nothing."""
    return _verdict(kind, json.dumps(options | small, sort_keys=True), backend)


@cache
def _verdict(kind: type[PreTrainedConfig], options: str, backend: str) -> str | None:
    try:
        check_exact(network(kind, json.loads(options)), 32, backend=backend)
    except ValueError as error:
        return str(error)


def special_layers(net: nn.Module) -> str:
    labels = set()
    for name, module in net.named_modules():
        base = kinds.sparse_base(module)
        if isinstance(module, nn.Conv2d):
            if module.groups > 1:
                labels.add("depthwise convolution" if module.groups == module.in_channels else "grouped convolution")
            if max(module.dilation) > 1:
                labels.add("dilation")
        if isinstance(module, nn.LayerNorm):
            labels.add("LayerNorm")
        if base is kinds.GlobalAveragePooling and "." in name:
            labels.add("squeeze-and-excitation")
        if base in LABELS and name != "pooler":
            labels.add(LABELS[base])
    return ", ".join(sorted(labels, key=str.lower)) or "none"


def configuration(kind: type[PreTrainedConfig], options: dict) -> str:
    return f"`{kind.__name__}({', '.join(f'{key}={value!r}' for key, value in options.items())})`"


def page() -> str:
    students, refused = [], []
    for name, kind, options, small in STUDENTS:
        with torch.device("meta"):
            net = network(kind, options).eval()
            states = net(torch.empty(1, 3, 224, 224), output_hidden_states=True).hidden_states
        strides = sorted({224 // state.shape[-1] for state in states})
        parameters = f"{sum(parameter.numel() for parameter in net.parameters()) / 1e6:.1f} M"
        cells_exact, spconv_exact = (
            "exact" if verdict(kind, options, small, backend) is None else "NO" for backend in ("cells", "spconv")
        )
        cells = name, configuration(kind, options), parameters, ", ".join(map(str, strides)), special_layers(net)
        students.append(f"| {' | '.join(cells)} | {cells_exact} | {spconv_exact} |")
    for name, kind, options, small in REFUSED:
        reason = " ".join((verdict(kind, options, small) or "NOT REFUSED").split())
        refused.append(f"| {name} | {configuration(kind, options)} | {reason} |")
    return TEXT.format(students="\n".join(students), refused="\n".join(refused))


def test_page_is_what_the_code_does():
    pytest.importorskip("spconv")
    text = page()
    assert " NO |" not in text
    assert "NOT REFUSED" not in text
    assert text == PAGE.read_text(), "docs/students.md is out of date: run python tests/sparse/test_students_table.py"


if __name__ == "__main__":
    PAGE.write_text(page())

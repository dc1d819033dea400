"""What features a stock network gives: maps at several scales, and one vector an image."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from .code import NetworkError


class FeatureScale(NamedTuple):
    """One scale of an encoder: its hidden state's index, channels, and pixels per position."""

    index: int
    channels: int
    stride: int


def feature_scales(encoder_config: PreTrainedConfig) -> tuple[FeatureScale, ...]:
    """The multi-scale maps of a CNN, finest first: of all hidden states of one size, the last.

    Raises:
        ValueError: the model gives no maps at two or more scales, e.g. a plain vision transformer.
    """
    return _feature_scales(json.dumps(encoder_config.to_dict(), sort_keys=True, default=str))


@lru_cache
def _feature_scales(encoder_config: str) -> tuple[FeatureScale, ...]:
    config = AutoConfig.for_model(**json.loads(encoder_config))
    side = 256
    try:
        with torch.device("meta"), torch.no_grad():
            encoder = AutoModel.from_config(config).eval()
            images = torch.empty(1, getattr(config, "num_channels", 3), side, side)
            hidden_states = encoder(images, output_hidden_states=True).hidden_states
    except NetworkError:  # which says more
        raise
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:  # a model for other input than such images
        raise ValueError(_no_scales(config)) from error
    scales = {}
    for index, state in enumerate(hidden_states or ()):
        if state is not None and state.dim() == 4 and state.shape[2] == state.shape[3] < side:
            scales[side // state.shape[2]] = FeatureScale(index, state.shape[1], side // state.shape[2])
    if len(scales) < 2:
        raise ValueError(_no_scales(config))
    return tuple(scales[stride] for stride in sorted(scales))


def has_feature_scales(encoder_config: PreTrainedConfig) -> bool:
    """Whether the model gives maps at two or more scales, which a plain vision transformer does not."""
    try:
        return bool(feature_scales(encoder_config))
    except ValueError:
        return False


def _no_scales(config: PreTrainedConfig) -> str:
    return (
        f"the student model type {config.model_type!r} gives no feature maps at several scales: choose a CNN, "
        f"e.g. resnet, regnet, convnextv2 or mobilenet_v2 (student)."
    )


def vit_patch_size(config: PreTrainedConfig) -> int | None:
    """Pixels of a patch's side of a plain vision transformer; None for others (ConvNeXt has a `patch_size` too)."""
    patch = getattr(config, "patch_size", None)
    return patch if isinstance(patch, int) and hasattr(config, "num_attention_heads") else None


def blank_image(config: PreTrainedConfig) -> Tensor:
    """(1, C, H, W) of the size that a config names, else 224 pixels; on the device of the context, e.g. meta."""
    side = getattr(config, "image_size", None) or 224
    height, width = (side, side) if isinstance(side, int) else side
    return torch.empty(1, getattr(config, "num_channels", 3), height, width)


def freeze_mask_token(model: nn.Module) -> None:
    """Stop training the mask token of a model that never masks: nothing uses it, and DDP waits for its gradient."""
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)


def pooled_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """One vector an image from a stock `transformers` vision model: (B, 3, H, W) -> (B, D).

    That is `pooler_output`, flattened, if the model has one (of a ResNet (B, D, 1, 1); of a ViT the layer above its
    class token, which is random if the checkpoint lacks it); else the mean of `last_hidden_state` over space
    (B, D, H, W), or over all tokens (B, T, D), class and register tokens among them.
    """
    outputs = model(pixel_values)
    if getattr(outputs, "pooler_output", None) is not None:
        return outputs.pooler_output.flatten(1)
    hidden = outputs.last_hidden_state
    return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)

"""Layers of a stock image classifier as feature maps, whether it is a CNN or a vision transformer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from .features import FeatureScale, blank_image, feature_scales, freeze_mask_token


def build_classifier(config: PreTrainedConfig) -> PreTrainedModel:
    """The stock image-classification model of `config`, with fresh weights.

    Raises:
        ValueError: transformers has no such model for this config.
    """
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), ())
    classes = classes if isinstance(classes, tuple) else (classes,)
    if not classes:
        raise ValueError(
            f"the student model type {config.model_type!r} has no image-classification model (student_config)."
        )
    # Where there are several (DeiT), the one that the config names, else the plain one.
    chosen = next((c for c in classes if c.__name__ in (config.architectures or ())), classes[0])
    model = chosen(config)
    freeze_mask_token(model)
    return model


def student_layers(config: PreTrainedConfig) -> dict[int, FeatureScale]:
    """The layers of a student by number, numbered as a `PatchTeacher`'s.

    i in 1..L is the output of the i-th block of a ViT (before its final norm), or the i-th of `feature_scales` of a
    CNN, finest first; -1 is `last_hidden_state`, which the classifier pools.

    Raises:
        ValueError: the model has neither maps nor one token a patch in all its blocks (e.g. Swin).
    """
    return dict(_student_layers(json.dumps(config.to_dict(), sort_keys=True, default=str)))


@lru_cache
def _student_layers(config: str) -> tuple[tuple[int, FeatureScale], ...]:
    config = AutoConfig.for_model(**json.loads(config))
    try:
        with torch.device("meta"), torch.no_grad():
            encoder, image = AutoModel.from_config(config).eval(), blank_image(config)
            outputs = encoder(image, output_hidden_states=True)
        _, channels, height, width = image.shape
        last = outputs.last_hidden_state
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:  # a model for other input than such images
        raise ValueError(_no_layers(config)) from error
    if last.dim() == 4:
        scales = feature_scales(config)
        final = FeatureScale(-1, last.shape[1], scales[-1].stride)
    else:
        convolutions = (m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels)
        stride = next((m.stride[0] for m in convolutions), 0)
        states = outputs.hidden_states or ()
        tokens = (height // stride) * (width // stride) if stride else 0
        if not tokens or any(state.shape != last.shape for state in states) or last.shape[1] < tokens:
            raise ValueError(_no_layers(config))
        scales = [FeatureScale(index, last.shape[2], stride) for index in range(1, len(states))]
        final = FeatureScale(-1, last.shape[2], stride)
    return (*enumerate(scales, 1), (-1, final))


def _no_layers(config: PreTrainedConfig) -> str:
    return (
        f"the student model type {config.model_type!r} has neither feature maps nor one token a patch in all its "
        f"blocks: choose a CNN or a plain vision transformer, e.g. resnet or deit (student_config)."
    )


def logits_and_maps(
    model: PreTrainedModel, pixel_values: Tensor, layers: Sequence[FeatureScale]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One forward of a stock classifier: its logits, and the maps of some of its `student_layers`.

    Special tokens of a ViT (class, distillation, registers) stand before the patch tokens: the patches are the last
    rows * columns of them.

    Args:
        pixel_values: (B, 3, H, W).
        layers: values of `student_layers`.

    Returns:
        (B, num_labels), and for each layer (B, C, h, w).
    """
    kept = []
    with model.base_model.register_forward_hook(lambda module, args, output: kept.append(output)):
        logits = model(pixel_values, output_hidden_states=True).logits
    maps = []
    for layer in layers:
        state = kept[-1].last_hidden_state if layer.index == -1 else kept[-1].hidden_states[layer.index]
        if state.dim() == 3:
            rows, columns = (side // layer.stride for side in pixel_values.shape[-2:])
            state = state[:, -rows * columns :].mT.unflatten(2, (rows, columns))
        maps.append(state)
    return logits, tuple(maps)

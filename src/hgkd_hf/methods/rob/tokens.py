"""What a vision transformer as student does not see: dropped tokens (MSN), masked patches (iBOT)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ...students.features import freeze_mask_token


@contextmanager
def dropped_tokens(student: PreTrainedModel, num_patches: int, ratio: float, generator: torch.Generator) -> Iterator:
    """Within, the student's blocks see a random choice of the patch tokens, the same of all images.

    Dropped after the position embedding (MSN, arXiv:2204.07141, section 3), special tokens kept.

    Args:
        student: a ViT whose `embeddings` module gives (B, special + num_patches, D).
        num_patches: in an image.
        ratio: share of them that is dropped, rounded down.
        generator: on the CPU.
    """
    kept = torch.randperm(num_patches, generator=generator)[: num_patches - int(num_patches * ratio)].sort().values

    def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        tokens = output[0] if isinstance(output, tuple) else output
        special = tokens.shape[1] - num_patches
        index = torch.cat([torch.arange(special), special + kept]).to(tokens.device)
        tokens = tokens[:, index]
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    with student.embeddings.register_forward_hook(hook):
        yield


def build_student(config: PreTrainedConfig, masks: bool) -> PreTrainedModel:
    """The student with fresh weights; with `masks`, one that takes `bool_masked_pos`.

    Raises:
        ValueError: it cannot mask.
    """
    if not masks:
        student = AutoModel.from_config(config)
        freeze_mask_token(student)
        return student
    try:
        student = AutoModel.from_config(config, use_mask_token=True)
    except TypeError:  # a model that always has one, or never
        student = AutoModel.from_config(config)
    has_token = any(name.endswith("mask_token") for name, _ in student.named_parameters())
    if not has_token or "bool_masked_pos" not in inspect.signature(student.forward).parameters:
        raise ValueError(
            f"ssl_method 'ibot' hides patches behind a mask token, but a {config.model_type} student has none: use "
            f"e.g. a vit, deit or dinov2."
        )
    return student

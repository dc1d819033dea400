"""The encoder of a student."""

from __future__ import annotations

from transformers import AutoModel, PreTrainedModel

from ...sparse import sparsify
from .configuration_sparse_unet import SparseUNetConfig


def build_encoder(config: SparseUNetConfig) -> PreTrainedModel:
    """The student's CNN with fresh weights, sparsified unless no mask can follow it and none is asked for.

    Raises:
        ValueError: with `use_mask_token`, it mixes positions in a way that no mask can follow.
    """
    encoder = AutoModel.from_config(config.encoder_config)
    try:
        return sparsify(encoder)
    except ValueError:
        if config.use_mask_token:
            raise
        return encoder

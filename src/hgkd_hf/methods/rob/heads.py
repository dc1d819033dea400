"""Student heads of RoB (arXiv:2301.09451): from an image feature to scores over the prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from ...objectives.prototypes import prototype_scores
from ...students.features import blank_image, pooled_features
from .settings import RoBSettings


class PrototypeHead(nn.Module):
    """An MLP, then cosines with trainable prototypes; with a trainable gain each, DINO's weight-normalised layer."""

    def __init__(self, mlp: nn.Module, width: int, num_prototypes: int, gain: bool):
        super().__init__()
        self.mlp = mlp
        self.prototypes = nn.Parameter(torch.zeros(num_prototypes, width))
        self.gain = nn.Parameter(torch.ones(num_prototypes)) if gain else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) to (B, K)."""
        scores = prototype_scores(self.mlp(features), self.prototypes)
        return scores if self.gain is None else scores * self.gain


def build_head(config: RoBSettings, width: int, is_cnn: bool, teacher_width: int) -> nn.Module:
    """The head of `config` on features of `width` channels.

    (B, width) to scores (B, K); for `"teacher_proto"` to (B, D) in the teacher's width, to be compared with its
    prototypes by a plain product (the projection is not normalised).
    """
    hidden, k = config.head_hidden_size, config.num_prototypes
    if config.student_head == "mlp" and config.ssl_method == "ibot":  # the paper's variant for patches too
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, k)]
        return nn.Sequential(*layers)
    if config.student_head == "mlp":
        norm = [nn.BatchNorm1d(hidden)] if is_cnn else []
        return nn.Sequential(nn.Linear(width, hidden), *norm, nn.Linear(hidden, k))
    if config.student_head == "teacher_proto":
        return _swav_projector(width, hidden, teacher_width)
    if config.ssl_method == "swav":
        return PrototypeHead(_swav_projector(width, hidden, 128), 128, k, gain=False)
    layers = []
    for size in (width, hidden):
        norm = [nn.BatchNorm1d(hidden)] if config.ssl_method == "msn" else []
        layers += [nn.Linear(size, hidden), *norm, nn.GELU()]
    mlp = nn.Sequential(*layers, nn.Linear(hidden, 256))
    return PrototypeHead(mlp, 256, k, gain=config.ssl_method in ("dino", "ibot"))


def _swav_projector(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def pooled_width(config: PreTrainedConfig) -> tuple[int, bool]:
    """The width of a student's image feature, and whether it is a CNN (gives maps)."""
    with torch.device("meta"), torch.no_grad():
        student, images = AutoModel.from_config(config).eval(), blank_image(config)
        return pooled_features(student, images).shape[1], student(images).last_hidden_state.dim() == 4

"""Co-advise: every distillation token follows a teacher of its own; all tokens answer together.

Ren, Gao, Hua, Xue, Tian, He, Zhao 2021, "Co-advise: Cross Inductive Bias Distillation" (arXiv:2106.12378).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .logit_distillation import soft_distillation_loss


def token_distillation_losses(
    token_logits: Sequence[Tensor], teacher_logits: Sequence[Tensor], temperature: float = 1.0
) -> Tensor:
    """temperature^2 * KL(teacher || token) of each pair, mean over images: (teachers,).

    Args:
        token_logits: of each distillation token (B, classes).
        teacher_logits: of each token's own teacher (B, classes), constant.
        temperature: divides both; the paper's is 1.

    Raises:
        ValueError: there are not as many tokens as teachers, or two shapes differ.
    """
    if len(token_logits) != len(teacher_logits):
        raise ValueError(
            f"every distillation token has one teacher, but there are {len(token_logits)} token(s) and "
            f"{len(teacher_logits)} teacher(s)."
        )
    pairs = zip(token_logits, teacher_logits)
    return torch.stack([soft_distillation_loss(token, teacher, temperature) for token, teacher in pairs])


def answer(class_logits: Tensor, token_logits: Sequence[Tensor]) -> Tensor:
    """The mean of the logits of class token and distillation tokens, (B, classes) each: the paper's prediction."""
    return torch.stack([class_logits, *token_logits]).mean(0)

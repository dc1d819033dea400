"""Decoupled knowledge distillation: how sure of the label, and how the other classes compare, as separate terms.

Zhao et al. 2022, "Decoupled Knowledge Distillation" (arXiv:2203.08679).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def decoupled_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> dict[str, Tensor]:
    """temperature^2 * (alpha * TCKD + beta * NCKD), arXiv:2203.08679 eq. 7, mean over images.

    TCKD is the KL divergence of (label, not label), NCKD that of the classes other than the label among themselves.
    Hinton's loss is TCKD + (1 - teacher's probability of the label) * NCKD: it mutes NCKD where the teacher is sure.

    Args:
        student_logits: (B, classes).
        teacher_logits: (B, classes), constant.
        labels: (B,) long.

    Returns:
        `loss`, and `target_class` (TCKD) and `other_classes` (NCKD), both without weight but with temperature^2.

    Raises:
        ValueError: the shapes do not go together, or there are fewer than 2 classes.
    """
    shape = student_logits.shape
    if len(shape) != 2 or shape[1] < 2 or shape != teacher_logits.shape or labels.shape != shape[:1]:
        raise ValueError(
            f"student logits {tuple(shape)}, teacher logits {tuple(teacher_logits.shape)} and labels "
            f"{tuple(labels.shape)} must be (B, classes >= 2), (B, classes) and (B,)."
        )
    is_label = F.one_hot(labels, shape[1]).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, 2) of (label, not label), and (B, classes - 1) among the others."""
        logits = logits / temperature
        others = logits[~is_label].view(len(logits), -1)
        return torch.stack([logits[is_label], others.logsumexp(1)], 1).log_softmax(1), others.log_softmax(1)

    target_class, other_classes = (
        F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
        for student, teacher in zip(split(student_logits), split(teacher_logits.detach()))
    )
    loss = alpha * target_class + beta * other_classes
    return {"loss": loss, "target_class": target_class, "other_classes": other_classes}

"""Logit distillation: the student's class probabilities follow the teacher's.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).
"""

from torch import Tensor
from torch.nn import functional as F


def _check(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} must both "
            f"be (images, classes)."
        )


def soft_distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """temperature^2 * KL(teacher || student) of the softened probabilities, summed over classes, mean over images.

    arXiv:1503.02531, section 2; the factor keeps the gradient's size when the temperature changes.

    Args:
        student_logits: (B, classes).
        teacher_logits: (B, classes), constant.

    Raises:
        ValueError: the shapes differ.
    """
    _check(student_logits, teacher_logits)
    student = (student_logits / temperature).log_softmax(1)
    teacher = (teacher_logits.detach() / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def hard_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision as the label (DeiT, arXiv:2012.12877, eq. 3).

    Args:
        student_logits: (B, classes).
        teacher_logits: (B, classes), constant.

    Raises:
        ValueError: the shapes differ.
    """
    _check(student_logits, teacher_logits)
    return F.cross_entropy(student_logits, teacher_logits.argmax(1))

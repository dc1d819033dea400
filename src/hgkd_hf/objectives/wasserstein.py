"""WCoRD: the Wasserstein distance of student and teacher features, by its dual form and by its primal form.

Chen, Wang, Gan, Liu, Henao, Carin 2021, "Wasserstein Contrastive Representation Distillation" (arXiv:2012.08674). The
dual form tells pairs of features of one image from those of two ("global"), the primal form moves the student's
features of a batch to the teacher's ("local").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BilinearCritic(nn.Module):
    """g(s, t) = <A s, B t> / sqrt(2), of features of length 1, A and B divided by their spectral norms.

    |A s| and |B t| are at most 1, so that g is 1-Lipschitz in (s, t), which the dual form asks of its critic. Of all
    such A and B, the best find the sum of the singular values of the features' cross-covariance.

    Args:
        student_dim: D_S, width of the student's features.
        teacher_dim: D_T, width of the teacher's.
        dim: rows of A and B.
    """

    def __init__(self, student_dim: int, teacher_dim: int, dim: int = 128):
        super().__init__()
        self.student_projection = nn.Linear(student_dim, dim, bias=False)
        self.teacher_projection = nn.Linear(teacher_dim, dim, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The critic of all pairs of (N, D_S) and (M, D_T): (N, M), between -0.71 and 0.71."""
        sides = (self.student_projection.weight, student), (self.teacher_projection.weight, teacher)
        ours, theirs = (F.normalize(x, dim=1) @ (w / torch.linalg.matrix_norm(w, 2)).mT for w, x in sides)
        return ours @ theirs.mT / math.sqrt(2)


def dual_loss(critic: Tensor) -> Tensor:
    """-(mean of the critic over pairs of one image) + its mean over pairs of two images; a scalar.

    Minimised over a 1-Lipschitz critic, this is minus the Wasserstein-1 distance of the joint distribution of the
    features and the product of their marginals; the student, too, minimises it.

    Args:
        critic: (B, B), of the student's features of image i and the teacher's of image j, B at least 2.

    Raises:
        ValueError: the critic's values are not (B, B), or there is one image alone.
    """
    images = len(critic)
    if critic.shape != (images, images) or images < 2:
        raise ValueError(f"critic must be (B, B) of at least two images, but it is {tuple(critic.shape)}.")
    same = critic.trace()
    return -same / images + (critic.sum() - same) / (images * (images - 1))


def transport_cost(student: Tensor, teacher: Tensor, epsilon: float = 0.1, iterations: int = 20) -> Tensor:
    """<plan, cost> of the cheapest plan that moves the student's features to the teacher's; a scalar.

    The cost of moving feature i to feature j is 1 - their cosine; each has the mass 1 / B. The plan is that of optimal
    transport with the entropy epsilon (Sinkhorn, arXiv:1306.0895), and a constant for the gradient.

    Args:
        student: (B, D).
        teacher: (B, D), constant.
        epsilon: small for a sharp plan; the cost is between 0 and 2.
        iterations: of rows and columns in turn.

    Raises:
        ValueError: the shapes differ.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be (B, D).")
    cost = 1 - F.normalize(student, dim=1) @ F.normalize(teacher.detach(), dim=1).mT
    return (sinkhorn_plan(cost, epsilon, iterations) * cost).sum()


@torch.no_grad()
def sinkhorn_plan(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The plan (B, B) of transport with entropy between equal masses; sums to 1, its columns to 1 / B exactly."""
    log_plan = -cost / epsilon
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(1).log_softmax(0)
    return log_plan.exp() / len(cost)

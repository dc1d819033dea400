"""RoB: a frozen teacher assigns images to prototypes, and the student learns the assignments.

Duval, Misra, Ballas 2023, "A Simple Recipe for Competitive Low-compute Self supervised Vision Models"
(arXiv:2301.09451), which replaces the momentum branch of DINO, SwAV, iBOT or MSN by a frozen model of that method.
Scores are (images, prototypes K) throughout; the patch term of iBOT stands in `masked_patches`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .distributed import gather_batch


@torch.no_grad()
def dino_targets(scores: Tensor, temperature: float = 0.07) -> Tensor:
    """DINO's and iBOT's targets: softmax(scores / temperature), without their centring (a frozen teacher needs none).

    Args:
        scores: (..., K) logits of the teacher's head.

    Returns:
        (..., K), each row a distribution over the prototypes.
    """
    return (scores / temperature).softmax(-1)


@torch.no_grad()
def msn_targets(cosines: Tensor, temperature: float = 0.025) -> Tensor:
    """MSN's targets: softmax(cosines / temperature); 0.025 is its temperature 0.1 with its sharpening 0.25 in one.

    Args:
        cosines: (..., K) cosines of the teacher's embedding with its prototypes.

    Returns:
        (..., K), each row a distribution over the prototypes.
    """
    return (cosines / temperature).softmax(-1)


@torch.no_grad()
def swav_targets(scores: Tensor, epsilon: float = 0.03, iterations: int = 3) -> Tensor:
    """SwAV's targets (arXiv:2006.09882, section 3.1): Sinkhorn-Knopp spreads the batch evenly over the prototypes.

    Prototypes and images are brought to equal mass in turn, images last. The batch is that of all processes when
    `torch.distributed` is initialised (B must then be the same on each). Logarithms keep scores of any size finite.

    Args:
        scores: (B, K) teacher scores of ONE crop of every image.
        epsilon: the entropy regulariser, a temperature.
        iterations: 0 leaves softmax(scores / epsilon).

    Returns:
        (B, K), each row a distribution over the prototypes.

    Raises:
        ValueError: scores are not (B, K).
    """
    if scores.dim() != 2:
        raise ValueError(f"scores must be (images, prototypes), but they are {tuple(scores.shape)}.")
    log_q = scores / epsilon
    for _ in range(iterations):
        mass, _ = gather_batch(log_q.logsumexp(0, keepdim=True))  # (processes, K)
        log_q = (log_q - mass.logsumexp(0)).log_softmax(1)
    return log_q.softmax(1)


def allowed_pairs(
    num_views: int, num_teacher_crops: int = 2, num_global: int = 2, swapped: bool = False
) -> list[tuple[int, int]]:
    """Which teacher crop i supervises which student view v, as pairs (i, v).

    Views 0..num_global-1 are the global crops, the others the local ones; teacher crop i shows view i. RoB's own rule,
    non-swapped: v is i or local. Swapped, as in the methods it starts from: v is any view but i.

    Raises:
        ValueError: no pair is left, or the numbers are not teacher crops <= global views <= views.
    """
    if not 1 <= num_teacher_crops <= num_global <= num_views:
        raise ValueError(
            f"{num_teacher_crops} teacher crops, {num_global} global views, {num_views} views: each number must be at "
            f"least 1 and at most the next."
        )
    pairs = [(i, v) for i in range(num_teacher_crops) for v in range(num_views)]
    pairs = [(i, v) for i, v in pairs if (v != i if swapped else v == i or v >= num_global)]
    if not pairs:
        raise ValueError(f"swapped assignment needs a second view, but there is {num_views}.")
    return pairs


def assignment_loss(
    student_scores: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    num_global: int = 2,
    swapped: bool = False,
    temperature: float = 0.1,
) -> dict[str, Tensor]:
    """The mean over the allowed pairs of H(q_i, p_v) = -sum_k q_i[k] log p_v[k], p = softmax(student / temperature).

    arXiv:2301.09451. Every teacher crop has as many pairs as any other, so this is also SwAV's rule (the mean over a
    crop's pairs, then over the crops).

    Args:
        student_scores: V tensors (B, K), the global views first.
        targets: one (B, K) for each teacher crop, at most `num_global`; rows are distributions. Constants.
        num_global: how many of the views are global.
        swapped: see `allowed_pairs`.

    Returns:
        `loss`; its parts `global` and `local`, the means over the pairs with such views (where there are any); and
        `target_entropy`, the lower bound of `loss`.

    Raises:
        ValueError: shapes differ, or see `allowed_pairs`.
    """
    shapes = {tuple(t.shape) for t in (*student_scores, *targets)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"all scores and targets must share one shape (images, prototypes), but are {sorted(shapes)}."
        )
    targets = [target.detach() for target in targets]
    pairs = allowed_pairs(len(student_scores), len(targets), num_global, swapped)
    log_p = {v: (student_scores[v] / temperature).log_softmax(1) for v in {v for _, v in pairs}}
    terms = {(i, v): -(targets[i] * log_p[v]).sum(1).mean() for i, v in pairs}
    named = {
        "loss": list(terms.values()),
        "global": [term for (_, v), term in terms.items() if v < num_global],
        "local": [term for (_, v), term in terms.items() if v >= num_global],
        "target_entropy": [torch.special.entr(target).sum(1).mean() for target in targets],
    }
    return {name: torch.stack(values).mean() for name, values in named.items() if values}

"""Fine-grained manifold distillation: the student's patches relate to each other as the teacher's do.

Hao et al. 2022, "Learning Efficient Vision Transformers via Fine-Grained Manifold Distillation" (arXiv:2107.01378).
The manifold of a batch is the matrix of cosines between all its B*N tokens. It is never built: that would be (B*N)^2
numbers, 0.6 GB at B = 64 images of N = 196 float32 tokens and as much again for the teacher. The three terms below
hold B*N^2, N*B^2 and K^2 numbers of student and teacher each: 10 MB, 3 MB and 0.1 MB at K = 192.

Only cosines are compared, so the widths D of student and teacher may differ and no projection is needed. Every term is
the MEAN of squared differences, the form for which the weights 4 / 0.1 / 0.2 are meant. Relations stay inside a
process, as in the published formulation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _unit_tokens(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student tokens {tuple(student.shape)} and teacher tokens {tuple(teacher.shape)} must be (B, N, D_S) and "
            f"(B, N, D_T): drop special tokens and resize one of the grids first."
        )
    return F.normalize(student, dim=-1), F.normalize(teacher.detach(), dim=-1)


def _relation_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines among rows: (..., R, D_S) and (..., R, D_T) unit vectors -> scalar."""
    return F.mse_loss(student @ student.mT, teacher @ teacher.mT)


def intra_image_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_{b,i,j} (<S_bi, S_bj> - <T_bi, T_bj>)^2: patches of one image among each other. Holds B*N*N numbers.

    Args:
        student: (B, N, D_S) tokens of a block's output.
        teacher: (B, N, D_T) tokens, constant.

    Raises:
        ValueError: B or N differ.
    """
    return _relation_error(*_unit_tokens(student, teacher))


def inter_image_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_{n,a,b} (<S_an, S_bn> - <T_an, T_bn>)^2: the patch at one place across images. Holds N*B*B numbers.

    Args:
        student: (B, N, D_S) tokens of a block's output.
        teacher: (B, N, D_T) tokens, constant.

    Raises:
        ValueError: B or N differ.
    """
    return _relation_error(*(tokens.transpose(0, 1) for tokens in _unit_tokens(student, teacher)))


def random_sample_loss(student: Tensor, teacher: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """mean_{p,q} (<S_p, S_q> - <T_p, T_q>)^2 over `num_samples` random tokens of the batch. Holds K*K numbers.

    One permutation picks the rows, without replacement and the same of student and teacher; all rows are taken when
    the batch holds no more, and the term is then the whole manifold's mean.

    Args:
        student: (B, N, D_S) tokens of a block's output.
        teacher: (B, N, D_T) tokens, constant.
        num_samples: K.
        generator: on the CPU.

    Raises:
        ValueError: B or N differ.
    """
    student, teacher = (tokens.flatten(0, 1) for tokens in _unit_tokens(student, teacher))
    rows = torch.randperm(len(student), generator=generator)[:num_samples].to(student.device)
    return _relation_error(student[rows], teacher[rows])


def manifold_loss(
    student_layers: Sequence[Tensor],
    teacher_layers: Sequence[Tensor],
    generator: torch.Generator,
    *,
    intra_weight: float = 4.0,
    inter_weight: float = 0.1,
    random_weight: float = 0.2,
    num_samples: int = 192,
) -> dict[str, Tensor]:
    """The mean over layer pairs of the three weighted terms (arXiv:2107.01378; weights and K of its main run).

    Args:
        student_layers: one (B, N, D_S) for each layer pair, a block's output before the final norm.
        teacher_layers: as many (B, N, D_T), constants.
        generator: draws the tokens of the random term, anew for each pair; on the CPU.

    Returns:
        `loss`, and the unweighted means over the pairs `intra_image`, `inter_image`, `random_sample`.

    Raises:
        ValueError: the numbers of layers differ or are 0, or B or N differ in a pair.
    """
    if len(student_layers) != len(teacher_layers) or not student_layers:
        raise ValueError(
            f"{len(student_layers)} student layers cannot be paired with {len(teacher_layers)} of the teacher."
        )
    pairs = list(zip(student_layers, teacher_layers))
    intra = torch.stack([intra_image_loss(s, t) for s, t in pairs]).mean()
    inter = torch.stack([inter_image_loss(s, t) for s, t in pairs]).mean()
    random = torch.stack([random_sample_loss(s, t, num_samples, generator) for s, t in pairs]).mean()
    loss = intra_weight * intra + inter_weight * inter + random_weight * random
    return {"loss": loss, "intra_image": intra, "inter_image": inter, "random_sample": random}

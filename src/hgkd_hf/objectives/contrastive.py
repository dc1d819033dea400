"""Contrastive representation distillation within one batch: an image's two features find each other.

After Tian et al. 2020, "Contrastive Representation Distillation" (arXiv:1910.10699). CRD draws 16384 negatives from
memory banks and estimates noise contrastively; this is its memory-free relative, InfoNCE (arXiv:1807.03748) over the
batch, our choice where banks do not fit a streamed data set.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .distributed import gather_batch


class ContrastiveLoss(nn.Module):
    """InfoNCE from student to teacher plus from teacher to student, on linear projections to the unit sphere.

    Both projections train, as in CRD; the features of the teacher are constants.

    Args:
        student_dim: D_S, width of the student's pooled features.
        teacher_dim: D_T, width of the teacher's.
        projection_dim: the common width.
        temperature: divides the cosines.
        gather: candidates are the images of all processes (B must be the same on each).
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        projection_dim: int = 128,
        temperature: float = 0.07,
        gather: bool = False,
    ):
        super().__init__()
        self.student_projection = nn.Linear(student_dim, projection_dim)
        self.teacher_projection = nn.Linear(teacher_dim, projection_dim)
        self.temperature = temperature
        self.gather = gather

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Compare pooled features (B, D_S) and (B, D_T) of the same images.

        Returns:
            `loss` = `student_to_teacher` + `teacher_to_student`, each the mean over this process's images of the
            cross-entropy of finding an image among all B (or all processes') images of the other side.

        Raises:
            ValueError: the shapes do not go together.
        """
        widths = self.student_projection.in_features, self.teacher_projection.in_features
        if student.shape != (len(teacher), widths[0]) or teacher.shape != (len(student), widths[1]):
            raise ValueError(
                f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must be "
                f"(B, {widths[0]}) and (B, {widths[1]})."
            )
        student = F.normalize(self.student_projection(student), dim=1)
        teacher = F.normalize(self.teacher_projection(teacher.detach()), dim=1)
        students, first = gather_batch(student) if self.gather else (student, 0)
        teachers, _ = gather_batch(teacher) if self.gather else (teacher, 0)
        positive = torch.arange(first, first + len(student), device=student.device)
        student_to_teacher = F.cross_entropy(student @ teachers.T / self.temperature, positive)
        teacher_to_student = F.cross_entropy(teacher @ students.T / self.temperature, positive)
        return {
            "loss": student_to_teacher + teacher_to_student,
            "student_to_teacher": student_to_teacher,
            "teacher_to_student": teacher_to_student,
        }

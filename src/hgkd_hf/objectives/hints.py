"""FitNets hints: a layer of the student, through a regressor, imitates a layer of the teacher.

Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550).
"""

from torch import Tensor, nn
from torch.nn import functional as F


class HintLoss(nn.Module):
    """The mean squared error after a 1x1 convolution from the student's to the teacher's channels.

    arXiv:1412.6550, section 2.2, eq. 3, as a mean in place of half the sum. The regressor trains with the student and
    is thrown away with this module.

    Args:
        student_channels: C_S.
        teacher_channels: C_T.
    """

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.regressor = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the maps (B, C_S, H, W) and (B, C_T, H, W), the teacher's a constant; a scalar.

        Raises:
            ValueError: the shapes do not go together; resize one of the grids first.
        """
        expected = (len(student), self.regressor.out_channels, *student.shape[2:])
        if student.dim() != 4 or student.shape[1] != self.regressor.in_channels or teacher.shape != expected:
            raise ValueError(
                f"student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)} must be "
                f"(B, {self.regressor.in_channels}, H, W) and (B, {self.regressor.out_channels}, H, W)."
            )
        return F.mse_loss(self.regressor(student), teacher.detach())

"""iBOT's patch term in RoB (arXiv:2301.09451; iBOT: arXiv:2111.07832): the frozen teacher sees the whole image and
names the prototype of every patch, the student must name those of the patches that are hidden from it.
"""

import math

import torch
from torch import Tensor


def masked_patch_loss(
    student_scores: Tensor, targets: Tensor, bool_masked_pos: Tensor, temperature: float = 0.1
) -> Tensor:
    """The batch mean of each image's sum_n mask_n H(q_n, p_n) / max(sum_n mask_n, 1), as a scalar.

    iBOT section 3.1, without its centring. Only the M masked patches are passed, so heads need not run on the others.
    An image without masked patches counts as 0; M = 0 is a loss of 0 with a gradient of 0. The two global views can
    be stacked along the batch: the mean over 2B images is the mean of the two views' terms.

    Args:
        student_scores: (M, K) scores of the masked patches, in the order of `bool_masked_pos.nonzero()`.
        targets: (M, K) the teacher's distributions for the same patches. Constants.
        bool_masked_pos: (B, N) or (B, gh, gw) bool, True = hidden, M of them.

    Raises:
        ValueError: the shapes do not go together.
    """
    mask = bool_masked_pos.flatten(1)
    masked = int(mask.sum())
    if student_scores.dim() != 2 or student_scores.shape != targets.shape or len(student_scores) != masked:
        raise ValueError(
            f"student_scores {tuple(student_scores.shape)} and targets {tuple(targets.shape)} must both be (M, K), "
            f"M = {masked} being the masked patches of bool_masked_pos {tuple(bool_masked_pos.shape)}."
        )
    cross_entropy = -(targets.detach() * (student_scores / temperature).log_softmax(1)).sum(1)
    image = mask.nonzero()[:, 0]
    weight = 1 / mask.sum(1).to(cross_entropy.dtype)[image]  # an image without masked patches has no row here
    return (weight * cross_entropy).sum() / len(mask)


def draw_mask_ratio(
    generator: torch.Generator, mean: float = 0.3, spread: float = 0.2, probability: float = 0.5
) -> float:
    """iBOT's mask ratio of one image: 0, or, with `probability`, uniform between mean - spread and mean + spread."""
    chance, position = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return mean + spread * (2 * position - 1) if chance < probability else 0.0


def block_mask(
    grid: tuple[int, int],
    mask_ratio: float,
    generator: torch.Generator,
    aspect_range: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Hide rectangles of cells until exactly `round(mask_ratio * cells)` cells are hidden.

    Block-wise masking of BEiT (arXiv:2106.08254, algorithm 1), which iBOT uses. A block's height / width is uniform in
    the LOGARITHM of `aspect_range`, so that tall and wide are equally likely. Its area is uniform between BEiT's 16 of
    14 x 14 cells (the third of a side, squared, on other grids) and what is still to hide; the last block keeps only
    the cells that are still to hide, which makes the number exact.

    Returns:
        (gh, gw) bool, True = hidden: a function of `generator` (on the CPU) alone.

    Raises:
        ValueError: `mask_ratio` is outside [0, 1].
    """
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio is {mask_ratio}, but it must lie in [0, 1].")
    height, width = grid
    hidden, smallest = round(mask_ratio * height * width), max(1, (min(grid) // 3) ** 2)
    low, high = math.log(aspect_range[0]), math.log(aspect_range[1])
    mask = torch.zeros(grid, dtype=torch.bool)
    while missing := hidden - int(mask.sum()):
        area, aspect, top, left = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = min(smallest, missing) + area * (missing - min(smallest, missing))
        aspect = math.exp(low + aspect * (high - low))
        block_height = min(max(round(math.sqrt(area * aspect)), 1), height)
        block_width = min(max(round(math.sqrt(area / aspect)), 1), width)
        top, left = int(top * (height - block_height + 1)), int(left * (width - block_width + 1))
        block = mask[top : top + block_height, left : left + block_width]
        rows, columns = (~block).nonzero()[:missing].unbind(1)
        block[rows, columns] = True
    return mask

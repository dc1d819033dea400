"""MSDCRD: local regions of a feature map, at several scales, each told apart from other images and other regions.

An independent reading of the abstract of Wang et al. 2025 (arXiv:2502.05835, multi-scale decoupling, sample selection,
sample-wise and feature-wise contrastive terms within one batch). Not given there and chosen by us: window sizes and
strides, the selection rules (after Scale Decoupled Distillation, CVPR 2024), temperature, weights and the means.

Student and teacher maps have one shape (B, C, H, W): the caller projects channels and resizes grids. A map becomes a
list of region tensors (B, R_k, C), one for each window k; the first is the whole map, R_0 = 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .choices import Layout, Selection
from .distributed import gather_batch


def pool_regions(maps: Tensor, layout: Layout = "sliding") -> list[Tensor]:
    """Average-pool a map in windows of its whole, half and quarter sides.

    "grid" moves a window by its own side, "sliding" by half of it (at least 1): 1 + 4 + 16 or 1 + 9 + 49 regions of an
    8 x 8 map. Sides are rounded down, windows that come out equal (on maps below 4 x 4) are kept once, and of a side
    that windows do not fill the last rows or columns stay out, as in `avg_pool2d`.

    Args:
        maps: (B, C, H, W).

    Returns:
        One (B, R_k, C) for each window, the largest first, regions row-major.

    Raises:
        ValueError: maps are not (B, C, H, W), or `layout` is unknown.
    """
    if maps.dim() != 4 or layout not in ("grid", "sliding"):
        raise ValueError(f"maps {tuple(maps.shape)} must be (B, C, H, W), layout {layout!r} 'grid' or 'sliding'.")
    windows = dict.fromkeys(tuple(max(1, side // part) for side in maps.shape[2:]) for part in (1, 2, 4))
    strides = {w: w if layout == "grid" else tuple(max(1, side // 2) for side in w) for w in windows}
    return [F.avg_pool2d(maps, w, strides[w]).flatten(2).mT for w in windows]


@torch.no_grad()
def selection_weights(
    teacher_regions: Sequence[Tensor], classifier: Callable[[Tensor], Tensor], labels: Tensor, mode: Selection
) -> list[Tensor]:
    """How much each region counts, from what the teacher's own classifier says about it.

    "consistent": 1 where the region is classified as its image's label, else 0; the whole map always counts 1.
    "sdd": 1 where region and whole map are both right or both wrong, 2 where only one is. "all": 1 everywhere.

    Args:
        teacher_regions: R tensors (B, R_k, C) of `pool_regions`, not normalised; the first is the whole map.
        classifier: (B, R_k, C) -> (B, R_k, classes) logits.
        labels: (B,) long.

    Returns:
        One (B, R_k) for each tensor of regions.

    Raises:
        ValueError: `mode` is unknown, or the first regions are not the whole map.
    """
    if mode not in ("all", "consistent", "sdd"):
        raise ValueError(f"selection mode {mode!r} must be 'all', 'consistent' or 'sdd'.")
    if teacher_regions[0].shape[1] != 1:
        raise ValueError(f"the first regions must be the whole map (B, 1, C), not {tuple(teacher_regions[0].shape)}.")
    if mode == "all":
        return [regions.new_ones(regions.shape[:2]) for regions in teacher_regions]
    right = [classifier(regions).argmax(-1) == labels[:, None] for regions in teacher_regions]
    if mode == "sdd":
        return [1 + (local != right[0]).to(teacher_regions[0].dtype) for local in right]
    right[0] = torch.ones_like(right[0])
    return [local.to(teacher_regions[0].dtype) for local in right]


def sample_wise_loss(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    temperature: float = 0.1,
    *,
    labels: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """-mean_{b,r} w_br log( exp(zS_br . zT_br / t) / sum_b' exp(zS_br . zT_b'r / t) ): one region across images.

    Args:
        student, teacher: (B, R, C) regions of all scales; normalised here. The teacher's are constants.
        weights: (B, R).
        labels: (B,), where given, other images of the same label are no negatives.
        gather: the images b' are those of all processes (B must be the same on each).

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _unit_regions(student, teacher, weights)
    own = torch.arange(len(student), device=student.device)
    candidates, first = gather_batch(teacher) if gather else (teacher, 0)
    logits = torch.einsum("brc,drc->brd", student, candidates) / temperature
    if labels is not None:
        all_labels = gather_batch(labels)[0] if gather else labels
        same = labels[:, None] == all_labels
        same[own, own + first] = False
        logits = logits.masked_fill(same[:, None, :], -torch.inf)
    positive = (own + first)[:, None].expand_as(weights)
    return (weights * F.cross_entropy(logits.mT, positive, reduction="none")).mean()


def feature_wise_loss(student: Tensor, teacher: Tensor, weights: Tensor, temperature: float = 0.1) -> Tensor:
    """-mean_{b,r} w_br log( exp(zS_br . zT_br / t) / sum_r' exp(zS_br . zT_br' / t) ): regions of one image and scale.

    Args:
        student, teacher: (B, R_k, C) regions of one scale; normalised here. The teacher's are constants.
        weights: (B, R_k).

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _unit_regions(student, teacher, weights)
    logits = student @ teacher.mT / temperature
    positive = torch.arange(logits.shape[1], device=logits.device).expand_as(weights)
    return (weights * F.cross_entropy(logits.mT, positive, reduction="none")).mean()


def multi_scale_contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    layout: Layout = "sliding",
    selection: Selection = "all",
    classifier: Callable[[Tensor], Tensor] | None = None,
    labels: Tensor | None = None,
    exclude_same_label: bool = False,
    temperature: float = 0.1,
    sample_weight: float = 1.0,
    feature_weight: float = 1.0,
    gather: bool = False,
) -> dict[str, Tensor]:
    """Both contrastive terms between two maps; an independent reading of the abstract of arXiv:2502.05835.

    The sample-wise mean runs over all regions, the feature-wise one over those of the scales with more than one region
    (with a single region there is nothing to tell apart; if all scales are such, the term is 0).

    Args:
        student: (B, C, H, W), projected and resized to the teacher's shape.
        teacher: (B, C, H, W), constant.
        selection: see `selection_weights`; all but "all" need `classifier` and `labels`.
        labels: (B,) long, also for `exclude_same_label`: images of one label are then no negatives of each other.
        gather: sample-wise negatives come from all processes.

    Returns:
        `loss` = sample_weight * sample_wise + feature_weight * feature_wise, and both terms unweighted.

    Raises:
        ValueError: the shapes differ, or `classifier` or `labels` is missing.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)} must be alike.")
    if selection != "all" and classifier is None:
        raise ValueError(f"selection {selection!r} asks the teacher's classifier, but none is given.")
    if labels is None and (selection != "all" or exclude_same_label):
        raise ValueError(f"selection {selection!r} with exclude_same_label={exclude_same_label} needs labels.")
    students, teachers = pool_regions(student, layout), pool_regions(teacher, layout)
    weights = selection_weights(teachers, classifier, labels, selection)
    sample_wise = sample_wise_loss(
        *(torch.cat(parts, 1) for parts in (students, teachers, weights)),
        temperature,
        labels=labels if exclude_same_label else None,
        gather=gather,
    )
    feature_wise = sample_wise.new_zeros(())
    several = [scale for scale in zip(students, teachers, weights) if scale[0].shape[1] > 1]
    for scale in several:
        share = scale[0].shape[1] / sum(regions.shape[1] for regions, _, _ in several)
        feature_wise = feature_wise + share * feature_wise_loss(*scale, temperature)
    loss = sample_weight * sample_wise + feature_weight * feature_wise
    return {"loss": loss, "sample_wise": sample_wise, "feature_wise": feature_wise}


def _unit_regions(student: Tensor, teacher: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    if student.dim() != 3 or student.shape != teacher.shape or student.shape[:2] != weights.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (student, teacher, weights))
        raise ValueError(f"student, teacher and weights must be (B, R, C), (B, R, C) and (B, R), but are {shapes}.")
    return F.normalize(student, dim=-1), F.normalize(teacher.detach(), dim=-1)

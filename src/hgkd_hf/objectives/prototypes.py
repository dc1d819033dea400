"""Prototypes for a teacher that has no self-supervised head: the directions its features gather around."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS_AT_A_TIME = 4096  # bounds the similarities in memory to ROWS_AT_A_TIME x K


def prototype_scores(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines of features with prototypes, in the place of a head's logits.

    Args:
        features: (..., D).
        prototypes: (K, D).

    Returns:
        (..., K) in [-1, 1].

    Raises:
        ValueError: the two have different widths D.
    """
    if prototypes.dim() != 2 or features.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"features {tuple(features.shape)} and prototypes {tuple(prototypes.shape)} must be (..., D) and (K, D)."
        )
    return F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).T


@torch.no_grad()
def fit_prototypes(features: Tensor, k: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means (Dhillon and Modha 2001): `k` unit vectors, each along the sum of the features nearest to it.

    Our own addition to RoB, whose teachers bring their heads. Seeds are drawn as in greedy k-means++ (Arthur and
    Vassilvitskii 2007), with 1 - cosine as the squared distance. A prototype that no feature is nearest to moves to
    the feature that is worst served. Zero features, which have no direction, are left out. On the CPU the result
    depends on `features` and `generator` alone. The cost grows with N * k * iterations: a sample of features will do.

    Args:
        features: (N, D).
        generator: on the CPU.

    Returns:
        (k, D) float32, L2-normalised, on the features' device.

    Raises:
        ValueError: features are not finite or not (N, D), or `k` is not between 1 and the number of non-zero features.
    """
    if features.dim() != 2 or not features.isfinite().all():
        raise ValueError(f"features must be finite and (N, D), but are {tuple(features.shape)} or not finite.")
    rows = F.normalize(features.float()[features.any(1)], dim=1)
    if not 1 <= k <= len(rows):
        raise ValueError(f"k={k} must lie between 1 and the {len(rows)} non-zero rows of {tuple(features.shape)}.")
    prototypes = _seeds(rows, k, generator)
    for _ in range(iterations):
        similarity, cluster = _nearest(rows, prototypes)
        sums = torch.zeros_like(prototypes).index_add_(0, cluster, rows)
        # No members, or members that cancel each other out: either way there is no direction to keep.
        empty = sums.norm(dim=1) < 1e-6
        sums[empty] = rows[similarity.topk(int(empty.sum()), largest=False).indices]
        prototypes = F.normalize(sums, dim=1)
    return prototypes


def _seeds(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """(k, D) rows. For each, candidates are drawn with chances proportional to their distances from the rows before,
    and the one that leaves the smallest sum of distances stays.
    """
    distance = rows.new_full((len(rows),), 2.0, dtype=torch.float64)  # of opposites: no distance is greater
    chosen = []
    for draws in torch.rand(k, 2 + int(math.log(k)), generator=generator, dtype=torch.float64).to(rows.device):
        cumulative = distance.cumsum(0)
        candidates = torch.searchsorted(cumulative, cumulative[-1] * draws, right=True)
        candidates = candidates.clamp_max(len(rows) - 1)  # past the end when all rows stand where chosen ones do
        distances = torch.minimum(distance, (1 - rows[candidates] @ rows.T).clamp_min(0).double())
        best = distances.sum(1).argmin()
        distance = distances[best]
        chosen.append(rows[candidates[best]])
    return torch.stack(chosen)


def _nearest(rows: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's cosine (N,) with its nearest prototype, and which one (N,) that is."""
    best = [(chunk @ prototypes.T).max(1) for chunk in rows.split(ROWS_AT_A_TIME)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])

"""The weighted nearest-neighbour classifier, the usual training-free score of self-supervised features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import Features

# Similarities are compared as whole multiples of 2**-30, far above float64 rounding and far below what matters. So
# equal images tie exactly, whichever block of the bank they stand in and however a matrix product is tiled.
SIMILARITY_STEPS = 2**30
BANK_LIMIT = 2**32


@torch.no_grad()
def knn_accuracy(
    train: Features,
    test: Features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
) -> float:
    """Top-1 accuracy in [0, 1] of `test` under a weighted vote of the `k` nearest images of `train`.

    Each neighbour votes for its label with weight exp(cosine similarity / temperature): Wu et al. 2018
    (arXiv:1805.01978, section 3.4), with the k and temperature of DINO (Caron et al. 2021, arXiv:2104.14294,
    appendix F). The number depends on both: report them beside it.

    The search is exact and in float64. Ties have one outcome: of equally similar images the one earlier in `train`
    is nearer, of labels with equal votes the smaller wins. So neither `chunk_size` nor the device moves the result.

    Args:
        train: the labelled bank, (N, D).
        test: the labelled queries, (M, D).
        k: the number of neighbours, at most N.
        temperature: > 0; the smaller, the more the nearest neighbour counts.
        chunk_size: queries and bank images compared at a time. Memory on the device is that of the queries,
            some 32 bytes x chunk_size**2 for a block, and 10 bytes x chunk_size x k**2 for the votes.
        device: where to search, default the CPU; it needs float64, which Apple's `mps` lacks.

    Raises:
        ValueError: for a setting out of range, missing labels, or widths D that differ.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k={k} must lie between 1 and the {len(train)} images of train.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be greater than 0.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    if train.labels is None or test.labels is None:
        raise ValueError("train and test must have labels: kNN accuracy compares them.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(f"train has width {train.features.shape[1]}, test has width {test.features.shape[1]}.")

    queries = test.features.to(device).split(chunk_size)
    nearest = [torch.empty(len(chunk), 0, dtype=torch.long, device=chunk.device) for chunk in queries]
    for start in range(0, len(train), chunk_size):
        bank = _unit(train.features[start : start + chunk_size].to(device))
        # The bank is the larger side: each block of it reaches the device once.
        for i, chunk in enumerate(queries):
            keys = torch.cat([nearest[i], _keys(_unit(chunk) @ bank.T, start)], dim=1)
            nearest[i] = keys.topk(min(k, keys.shape[1])).values
    labels = train.labels.to(device)
    predictions = [_vote(keys, labels, temperature) for keys in nearest]
    return (torch.cat(predictions).cpu() == test.labels).double().mean().item()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)


def _keys(similarity: Tensor, start: int) -> Tensor:
    """Whole numbers that sort by similarity first and by position in the bank second, so no two are equal."""
    position = torch.arange(start, start + similarity.shape[1], device=similarity.device)
    return (similarity * SIMILARITY_STEPS).round().long() * BANK_LIMIT - position


def _vote(keys: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The winning label (B,) of sorted keys (B, k)."""
    position = -keys % BANK_LIMIT
    similarity = (keys + position).double() / (SIMILARITY_STEPS * BANK_LIMIT)
    # Taking the nearest as origin leaves the vote as it is, and lets no small temperature overflow.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    labels = labels[position]
    # (B, k, k): every neighbour gathers the weight of its own label, so memory does not grow with the classes.
    votes = ((labels[:, :, None] == labels[:, None, :]) * weights[:, None, :]).sum(2).float()
    winners = votes == votes.amax(1, keepdim=True)
    return labels.masked_fill(~winners, torch.iinfo(torch.long).max).amin(1)

"""The weighted nearest-neighbour classifier, the usual training-free score of self-supervised features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import Features, full_precision
from .shares import count, gather

# Similarities are compared as whole multiples of 2**-30, far above float64 rounding and far below what matters. So
# equal images tie exactly, whichever block of the bank they stand in and however a matrix product is tiled.
SIMILARITY_STEPS = 2**30
BANK_LIMIT = 2**32
# The search in float32 finds so many more than are wanted, and what it finds is compared again in float64: an image is
# missed only if as many others are as near as float32 can tell.
SPARE = 32
COMPARED_VALUES = 2**24  # at once, of found images, in float64


@torch.no_grad()
@full_precision()
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

    The bank is searched block by block on the device in float32, and the 2 k + 32 images found for each query are
    compared again in float64. Ties have one outcome: of equally similar images the one earlier in `train` is nearer,
    of labels with equal votes the smaller wins. So neither `chunk_size` nor the device moves the result.

    Of a bank that processes share out, each searches its own part, and the nearest of all are put together: the
    result is that of one process.

    Args:
        train: the labelled bank, (N, D).
        test: the labelled queries, (M, D), all of them in every process.
        k: the number of neighbours, at most N.
        temperature: > 0; the smaller, the more the nearest neighbour counts.
        chunk_size: queries and bank images compared at a time. Memory on the device is that of the queries, of a
            block of the bank, and some 12 bytes x chunk_size**2.
        device: where to search, default the CPU.

    Raises:
        ValueError: for a setting out of range, missing labels, or widths D that differ.
    """
    images = count(train)
    if not 1 <= k <= images:
        raise ValueError(f"k={k} must lie between 1 and the {images} images of train.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be greater than 0.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    if train.labels is None or test.labels is None:
        raise ValueError("train and test must have labels: kNN accuracy compares them.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(f"train has width {train.features.shape[1]}, test has width {test.features.shape[1]}.")

    queries = F.normalize(test.features.to(device), dim=1).split(chunk_size)
    found = [(chunk.new_empty(len(chunk), 0), chunk.new_empty(len(chunk), 0, dtype=torch.long)) for chunk in queries]
    for start in range(0, len(train), chunk_size):
        bank = F.normalize(train.features[start : start + chunk_size].to(device), dim=1)
        positions = torch.arange(start, start + len(bank), device=bank.device)
        # The bank is the larger side: each block of it reaches the device once.
        for i, chunk in enumerate(queries):
            similarity = torch.cat([found[i][0], chunk @ bank.T], dim=1)
            position = torch.cat([found[i][1], positions.expand(len(chunk), -1)], dim=1)
            nearest = similarity.topk(min(2 * k + SPARE, similarity.shape[1]))
            found[i] = nearest.values, position.gather(1, nearest.indices)
    candidates = torch.cat([position for _, position in found]).cpu()
    places = train.rows if train.shared else torch.arange(len(train))  # of which the order counts
    found = []
    size = max(1, COMPARED_VALUES // max(1, candidates.shape[1] * train.features.shape[1]))
    for chunk, position in zip(test.features.split(size), candidates.split(size)):
        similarity = (_unit(train.features[position]) @ _unit(chunk)[:, :, None]).squeeze(2)
        found.append(_nearest(_keys(similarity, places[position]), train.labels[position], k))
    # Transposed, since it is the first length that may differ between processes.
    keys, labels = (torch.cat(gather(torch.cat(part).T.contiguous(), train.shared)).T for part in zip(*found))
    nearest = zip(*(values.split(chunk_size) for values in _nearest(keys, labels, k)))
    predictions = torch.cat([_vote(*values, temperature) for values in nearest])
    return (predictions == test.labels).double().mean().item()


def _nearest(keys: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest keys (B, k) of (B, n), sorted, with their labels; all, if there are fewer."""
    keys, order = keys.topk(min(k, keys.shape[1]))
    return keys, labels.gather(1, order)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=-1)


def _keys(similarity: Tensor, position: Tensor) -> Tensor:
    """Whole numbers that sort by similarity first and by position in the bank second, so no two are equal."""
    return (similarity * SIMILARITY_STEPS).round().long() * BANK_LIMIT - position


def _vote(keys: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The winning label (B,) of sorted keys and their labels (B, k)."""
    position = -keys % BANK_LIMIT
    similarity = (keys + position).double() / (SIMILARITY_STEPS * BANK_LIMIT)
    # Taking the nearest as origin leaves the vote as it is, and lets no small temperature overflow.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    # (B, k, k): every neighbour gathers the weight of its own label, so memory does not grow with the classes.
    votes = ((labels[:, :, None] == labels[:, None, :]) * weights[:, None, :]).sum(2).float()
    winners = votes == votes.amax(1, keepdim=True)
    return labels.masked_fill(~winners, torch.iinfo(torch.long).max).amin(1)

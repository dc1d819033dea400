"""Linear probes: multinomial logistic regression on frozen, standardised features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import Features

# With one label a class nothing can be held out to choose a strength, nor does it matter: on digits 1e-4 ... 1 agree
# within the spread of the draws.
LOW_SHOT_L2 = 1e-2


@dataclass(frozen=True)
class LinearProbeResult:
    """Accuracy in [0, 1] on the test set, the chosen strength, and its accuracy on the held-out part of train."""

    accuracy: float
    l2: float
    validation_accuracy: float


def linear_probe(
    train: Features,
    test: Features,
    *,
    strengths: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    validation_fraction: float = 0.1,
    max_iterations: int = 200,
    seed: int = 0,
) -> LinearProbeResult:
    """Top-1 accuracy of a logistic regression by full-batch L-BFGS, in float64 on the CPU; deterministic.

    It minimises mean cross-entropy + l2 / 2 x the squared norm of the weights (the bias is free), which is
    scikit-learn's objective with C = 1 / (l2 x N). The strength is chosen on a stratified, held-out part of train (of
    equally accurate ones the strongest) and the classifier is then fitted to all of train: the protocol of CLIP's
    probe (Radford et al. 2021, arXiv:2103.00020, appendix A.3). The test set takes no part in either.

    Args:
        train: (N, D) with labels, any whole numbers; a test label that train lacks counts as an error.
        test: (M, D) with labels.
        strengths: the values of l2 to choose from, each > 0.
        validation_fraction: part of each class that is held out, in (0, 1): at least one image, never all.
        max_iterations: of L-BFGS in each fit; the weakest strengths may stop here, before their optimum.
        seed: of the split.

    Raises:
        ValueError: for a setting out of range, labels or widths that do not fit, or no class with two images.
    """
    _check(train, test)
    if not strengths or not min(strengths) > 0:
        raise ValueError(f"strengths={tuple(strengths)} must hold values greater than 0.")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} must lie between 0 and 1.")
    held_out = torch.zeros(len(train), dtype=torch.bool)
    for members in _shuffled_classes(train.labels, torch.Generator().manual_seed(seed)):
        count = max(1, round(validation_fraction * len(members)))
        held_out[members[: min(count, len(members) - 1)]] = True
    if not held_out.any():
        raise ValueError(f"train has {len(train)} images, no two of one class: nothing can be held out to choose l2.")

    features, labels = train.features, train.labels
    part, rest = _standardise(features[~held_out], features[held_out])
    scores = {
        l2: _fit(part, labels[~held_out], l2, max_iterations).accuracy(rest, labels[held_out])
        for l2 in sorted(strengths, reverse=True)
    }
    best = max(scores, key=scores.get)  # the first, hence the strongest, of equals
    part, rest = _standardise(features, test.features)
    accuracy = _fit(part, labels, best, max_iterations).accuracy(rest, test.labels)
    return LinearProbeResult(accuracy, best, scores[best])


def low_shot_probe(
    train: Features, test: Features, *, shots: Sequence[int] = (1, 5, 10), draws: int = 5, seed: int = 0
) -> dict[int, tuple[float, float]]:
    """Accuracy in [0, 1] of a probe on n labels a class: {n: (mean, population std)} over several draws of the labels.

    The classifier is that of `linear_probe` with l2 = 1e-2. Labels are what is scarce, not images: features are
    standardised over all of train. Within a draw the images for a smaller n are among those for a larger one.

    Args:
        train: (N, D) with labels; the images are drawn from here.
        test: (M, D) with labels.
        shots: numbers of labels a class.
        draws: how often the labels are drawn.
        seed: of the draws, the same whatever `shots` holds.

    Raises:
        ValueError: if a class of train has fewer images than a value of `shots`, or an argument is out of range.
    """
    _check(train, test)
    if not shots or min(shots) < 1:
        raise ValueError(f"shots={tuple(shots)} must hold whole numbers of at least 1.")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1.")
    classes, counts = train.labels.unique(return_counts=True)
    if counts.min() < max(shots):
        rarest = classes[counts.argmin()].item()
        raise ValueError(
            f"shots={max(shots)} is more than the {counts.min()} images that train has of class {rarest}."
        )
    features, test_features = _standardise(train.features, test.features)
    generator = torch.Generator().manual_seed(seed)
    accuracies = {n: [] for n in shots}
    for _ in range(draws):
        drawn = _shuffled_classes(train.labels, generator)
        for n in shots:
            chosen = torch.cat([members[:n] for members in drawn])
            probe = _fit(features[chosen], train.labels[chosen], LOW_SHOT_L2, max_iterations=200)
            accuracies[n].append(probe.accuracy(test_features, test.labels))
    stacked = {n: torch.tensor(values, dtype=torch.float64) for n, values in accuracies.items()}
    return {n: (values.mean().item(), values.std(correction=0).item()) for n, values in stacked.items()}


@dataclass(frozen=True)
class _Probe:
    classes: Tensor
    weight: Tensor
    bias: Tensor

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        predictions = self.classes[F.linear(features, self.weight, self.bias).argmax(1)]
        return (predictions == labels).double().mean().item()


def _fit(features: Tensor, labels: Tensor, l2: float, max_iterations: int) -> _Probe:
    """Features (N, D) float64, standardised; labels (N,). From zero weights, so the order of fits is of no account."""
    classes, targets = labels.unique(return_inverse=True)
    weight = features.new_zeros(len(classes), features.shape[1], requires_grad=True)
    bias = features.new_zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), targets) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return _Probe(classes, weight.detach(), bias.detach())


def _standardise(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, shifted and scaled so that each dimension of `reference` has mean 0 and variance 1."""
    reference = reference.double()
    mean, std = reference.mean(0), reference.std(0, correction=0)
    # A constant dimension carries only rounding, which must not be blown up into a feature.
    std[std <= 1e-6 * mean.abs()] = 1.0
    return (reference - mean) / std, (other.double() - mean) / std


def _shuffled_classes(labels: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The positions of each class in random order, classes by rising label."""
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    return [positions[torch.randperm(len(positions), generator=generator)] for positions in members]


def _check(train: Features, test: Features) -> None:
    if train.labels is None or test.labels is None:
        raise ValueError("train and test must have labels: a probe is fitted to the ones and scored on the others.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(f"train has width {train.features.shape[1]}, test has width {test.features.shape[1]}.")

"""Linear probes: multinomial logistic regression on frozen, standardised features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import Features, full_precision
from .shares import gather, total

# With one label a class nothing can be held out to choose a strength, nor does it matter: on digits 1e-4 ... 1 agree
# within the spread of the draws.
LOW_SHOT_L2 = 1e-2
BLOCK = 8192  # images at a time on the device
KEPT_BYTES = 2**30  # of standardised features that are kept there between passes, rather than made anew in each
HISTORY_VALUES = 2**25  # that L-BFGS may keep of each kind; it remembers 100 steps where they fit


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
    device: torch.device | str = "cpu",
) -> LinearProbeResult:
    """Top-1 accuracy of a logistic regression by full-batch L-BFGS; deterministic on one device.

    Every pass streams the features in blocks through the device, in float32 on an accelerator and in float64 on the
    CPU; sums, weights and optimizer are float64 on the CPU. So no second copy of the features is made, and any number
    of them fits.

    It minimises mean cross-entropy + l2 / 2 x the squared norm of the weights (the bias is free), which is
    scikit-learn's objective with C = 1 / (l2 x N). The strength is chosen on a stratified, held-out part of train (of
    equally accurate ones the strongest) and the classifier is then fitted to all of train: the protocol of CLIP's
    probe (Radford et al. 2021, arXiv:2103.00020, appendix A.3). The test set takes no part in either.

    Of images that processes share out (`train.shared`), each passes its own, and the sums are those of all.

    Args:
        train: (N, D) with labels, any whole numbers; a test label that train lacks counts as an error.
        test: (M, D) with labels, all of them in every process.
        strengths: the values of l2 to choose from, each > 0.
        validation_fraction: part of each class that is held out, in (0, 1): at least one image, never all.
        max_iterations: of L-BFGS in each fit; the weakest strengths may stop here, before their optimum.
        seed: of the split.
        device: where the features are passed through.

    Raises:
        ValueError: for a setting out of range, labels or widths that do not fit, or no class with two images.
    """
    _check(train, test)
    if not strengths or not min(strengths) > 0:
        raise ValueError(f"strengths={tuple(strengths)} must hold values greater than 0.")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} must lie between 0 and 1.")
    labels, places = _all_labels(train)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for members in _shuffled_classes(labels, torch.Generator().manual_seed(seed)):
        count = max(1, round(validation_fraction * len(members)))
        held_out[members[: min(count, len(members) - 1)]] = True
    if not held_out.any():
        raise ValueError(f"train has {len(labels)} images, no two of one class: nothing can be held out to choose l2.")

    part, rest = (~held_out[places]).nonzero().flatten(), held_out[places].nonzero().flatten()
    scale = _Scale.of(train, part)
    fitted, scored = (_Rows(train, rows, scale, device) for rows in (part, rest))
    scores = {
        l2: _fit(fitted, labels[~held_out].unique(), l2, max_iterations).accuracy(scored)
        for l2 in sorted(strengths, reverse=True)
    }
    best = max(scores, key=scores.get)  # the first, hence the strongest, of equals
    everything = torch.arange(len(train))
    scale = _Scale.of(train, everything)
    probe = _fit(_Rows(train, everything, scale, device), labels.unique(), best, max_iterations)
    accuracy = probe.accuracy(_Rows(test, torch.arange(len(test)), scale, device))
    return LinearProbeResult(accuracy, best, scores[best])


def low_shot_probe(
    train: Features,
    test: Features,
    *,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[int, tuple[float, float]]:
    """Accuracy in [0, 1] of a probe on n labels a class: {n: (mean, population std)} over several draws of the labels.

    The classifier is that of `linear_probe` with l2 = 1e-2. Labels are what is scarce, not images: features are
    standardised over all of train. Within a draw the images for a smaller n are among those for a larger one.

    Args:
        train: (N, D) with labels; the images are drawn from here. Processes may share them out, as above.
        test: (M, D) with labels, all of them in every process.
        shots: numbers of labels a class.
        draws: how often the labels are drawn.
        seed: of the draws, the same whatever `shots` holds.
        device: as in `linear_probe`.

    Raises:
        ValueError: if a class of train has fewer images than a value of `shots`, or an argument is out of range.
    """
    _check(train, test)
    if not shots or min(shots) < 1:
        raise ValueError(f"shots={tuple(shots)} must hold whole numbers of at least 1.")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1.")
    labels, places = _all_labels(train)
    classes, counts = labels.unique(return_counts=True)
    if counts.min() < max(shots):
        rarest = classes[counts.argmin()].item()
        raise ValueError(
            f"shots={max(shots)} is more than the {counts.min()} images that train has of class {rarest}."
        )
    scale = _Scale.of(train, torch.arange(len(train)))
    scored = _Rows(test, torch.arange(len(test)), scale, device)
    generator = torch.Generator().manual_seed(seed)
    accuracies = {n: [] for n in shots}
    for _ in range(draws):
        drawn = _shuffled_classes(labels, generator)
        for n in shots:
            chosen = torch.isin(places, torch.cat([members[:n] for members in drawn])).nonzero().flatten()
            probe = _fit(_Rows(train, chosen, scale, device), classes, LOW_SHOT_L2, max_iterations=200)
            accuracies[n].append(probe.accuracy(scored))
    stacked = {n: torch.tensor(values, dtype=torch.float64) for n, values in accuracies.items()}
    return {n: (values.mean().item(), values.std(correction=0).item()) for n, values in stacked.items()}


@dataclass(frozen=True)
class _Scale:
    """What shifts and scales features so that each dimension has mean 0 and variance 1; (D,) float64."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Features, rows: Tensor) -> _Scale:
        """That of some of the images, over all processes that share them out."""

        def mean_of(values: Callable[[Tensor], Tensor]) -> Tensor:
            own = sum(values(images.features[block].double()).sum(0) for block in rows.split(BLOCK))
            return total(own, images.shared) / number

        number = total(torch.tensor(len(rows)), images.shared)
        mean = mean_of(lambda block: block)
        variance = mean_of(lambda block: (block - mean).square())
        std = variance.sqrt()
        # A constant dimension carries only rounding, which must not be blown up into a feature.
        std[std <= 1e-6 * mean.abs()] = 1.0
        return cls(mean, std)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type == "cpu" else torch.float32


class _Rows:
    """Some of the images, standardised, on a device; iterated block by block, again and again.

    They are kept there if they are few.
    """

    def __init__(self, images: Features, rows: Tensor, scale: _Scale, device: torch.device | str):
        self.features, self.labels, self.shared = images.features, images.labels[rows], images.shared
        self.rows, self.scale, self.device = rows, scale, torch.device(device)
        self.count = int(total(torch.tensor(len(rows)), self.shared))
        self.dtype = _dtype(self.device)
        few = self.dtype.itemsize * len(rows) * self.width <= KEPT_BYTES
        self._kept = list(self._made()) if few else None

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    def __iter__(self) -> Iterator[Tensor]:
        return self._made() if self._kept is None else iter(self._kept)

    def _made(self) -> Iterator[Tensor]:
        for block in self.rows.split(BLOCK):
            # In float64, since a dimension may lie far from 0 and vary little.
            yield ((self.features[block].double() - self.scale.mean) / self.scale.std).to(self.dtype).to(self.device)


@dataclass(frozen=True)
class _Probe:
    """`weight` (C, D) and `bias` (C,), float64 on the CPU, of the classes (C,)."""

    classes: Tensor
    weight: Tensor
    bias: Tensor

    @full_precision()
    def accuracy(self, rows: _Rows) -> float:
        weight, bias = (values.to(rows.dtype).to(rows.device) for values in (self.weight, self.bias))
        right = torch.zeros((), dtype=torch.long)
        for block, labels in zip(rows, rows.labels.split(BLOCK)):
            right += (self.classes[F.linear(block, weight, bias).argmax(1).cpu()] == labels).sum()
        return total(right, rows.shared).item() / rows.count


@torch.no_grad()
@full_precision()
def _fit(rows: _Rows, classes: Tensor, l2: float, max_iterations: int) -> _Probe:
    """Of sorted classes (C,); from zero weights, so the order of fits is of no account."""
    targets = torch.searchsorted(classes, rows.labels)
    weight = torch.zeros(len(classes), rows.width, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        history_size=max(5, min(100, HISTORY_VALUES // weight.numel())),
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        """Mean cross-entropy and penalty, with their gradients: of logits it is softmax minus the target."""
        on_device = [values.detach().to(rows.dtype).to(rows.device) for values in (weight, bias)]
        loss = torch.zeros((), dtype=torch.float64)
        weight.grad.zero_()
        bias.grad.zero_()
        for block, target in zip(rows, targets.split(BLOCK)):
            target = target.to(block.device)[:, None]
            logits = F.linear(block, *on_device)
            scores = logits.log_softmax(1)
            loss -= scores.gather(1, target).cpu().double().sum() / rows.count
            error = scores.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=scores.dtype)) / rows.count
            weight.grad += (error.T @ block).cpu()
            bias.grad += error.sum(0).cpu()
        for sums in (loss, weight.grad, bias.grad):
            sums.copy_(total(sums, rows.shared))
        weight.grad += l2 * weight.detach()
        return loss + l2 / 2 * weight.detach().square().sum()

    optimizer.step(closure)
    return _Probe(classes, weight.detach(), bias.detach())


def _all_labels(images: Features) -> tuple[Tensor, Tensor]:
    """The labels of the images of all processes in the order of their rows, and where this process's own are."""
    if not images.shared:
        return images.labels, torch.arange(len(images))
    rows, order = torch.cat(gather(images.rows, True)).sort()
    return torch.cat(gather(images.labels, True))[order], torch.searchsorted(rows, images.rows)


def _shuffled_classes(labels: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The positions of each class in random order, classes by rising label."""
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    return [positions[torch.randperm(len(positions), generator=generator)] for positions in members]


def _check(train: Features, test: Features) -> None:
    if train.labels is None or test.labels is None:
        raise ValueError("train and test must have labels: a probe is fitted to the ones and scored on the others.")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(f"train has width {train.features.shape[1]}, test has width {test.features.shape[1]}.")

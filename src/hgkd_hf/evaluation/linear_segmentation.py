"""A linear segmentation probe: one 1x1 convolution on standardised, frozen maps; only it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .segmentation import intersection_over_union, pixel_counts

MapsOf = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class SegmentationProbeSettings:
    """How the probe is fitted.

    Attributes:
        epochs, batch_size: passes over the training images, and images a step.
        learning_rate: of AdamW, falling linearly to 0.
        weight_decay: of AdamW.
        seed: of the order of images.
    """

    epochs: int = 30
    batch_size: int = 16
    learning_rate: float = 1e-2
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class FrozenMaps:
    """The maps of a set of images and the classes of their positions.

    Attributes:
        maps: of each scale, finest first, (N, C, h, w) float16 on the CPU.
        labels: (N, h, w) int64 on the grid of the finest maps, by the nearest pixels of the class maps.
    """

    maps: tuple[Tensor, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@torch.no_grad()
def extract_maps(maps_of: MapsOf, batches: Iterable[Mapping], num_images: int, device: torch.device) -> FrozenMaps:
    """Run a frozen model over images once.

    Args:
        maps_of: `pixel_values` (B, 3, H, W) on `device` -> maps (B, C, h, w), finest first.
        batches: with `pixel_values`; `labels`, class maps (H, W) of any sizes; and `sample_index` (B,). Rows that came
            before, in place of unusable ones, are left out.
        num_images: how many there are.
        device: where `maps_of` expects its input.

    Raises:
        ValueError: the maps would not fit the memory that is free.
    """
    maps: list[list[Tensor]] = []
    labels: list[Tensor] = []
    for images, references in _each_once(batches):
        found = [map_.half().cpu() for map_ in maps_of(images.to(device))]
        if not maps:
            needed = num_images * sum(map_[0].nbytes for map_ in found)
            free = psutil.virtual_memory().available
            if needed > free:
                raise ValueError(
                    f"the maps of {num_images} images need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: "
                    "lower --image_size or --bank_samples."
                )
            maps = [[] for _ in found]
        for kept, map_ in zip(maps, found):
            kept.append(map_)
        for reference in references:
            grid = F.interpolate(reference[None, None].double(), found[0].shape[-2:], mode="nearest-exact")
            labels.append(grid[0, 0].long())
    return FrozenMaps(tuple(map(torch.cat, maps)), torch.stack(labels))


def _each_once(batches: Iterable[Mapping]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The images and class maps of each batch, without rows that came before."""
    seen: set[int] = set()
    for batch in batches:
        rows = batch["sample_index"].tolist()
        new = [place for place, row in enumerate(rows) if row not in seen and row not in rows[:place]]
        seen.update(rows)
        if new:
            yield batch["pixel_values"][new], [batch["labels"][place] for place in new]


class SegmentationProbe(nn.Module):
    """BatchNorm with the statistics of the training images, and a 1x1 convolution, on maps that are upsampled.

    That is the linear head of DINOv2's evaluation (Oquab et al. 2023, arXiv:2304.07193, section 7.4) on the maps of
    all scales. Neither BatchNorm, once its statistics are fixed, nor the convolution mixes positions, so that both
    come before the upsampling, where they cost least: the logits are those of the upsampled, concatenated maps.
    """

    def __init__(self, maps: Sequence[Tensor], num_classes: int):
        super().__init__()
        self.norms, self.classifiers = nn.ModuleList(), nn.ModuleList()
        for values in maps:
            channels = values.shape[1]
            norm = nn.BatchNorm2d(channels, affine=False)
            mean, variance = channel_statistics(values)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            self.norms.append(norm.eval())
            classifier = nn.Conv2d(channels, num_classes, 1)
            nn.init.zeros_(classifier.weight)
            nn.init.zeros_(classifier.bias)
            self.classifiers.append(classifier)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w), finest first -> logits (B, classes, h, w) on the finest grid."""
        logits = [head(norm(map_.float())) for head, norm, map_ in zip(self.classifiers, self.norms, maps)]
        size = logits[0].shape[-2:]
        return sum(F.interpolate(part, size, mode="bilinear", align_corners=False) for part in logits)


def channel_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) float32 of maps (N, C, h, w), summed in float64, an image at a time."""
    total = torch.zeros(2, values.shape[1], dtype=torch.float64)
    for image in values:
        image = image.double()
        total += torch.stack([image.sum((1, 2)), image.square().sum((1, 2))])
    mean, square = total / (values.numel() / values.shape[1])
    return mean.float(), (square - mean**2).clamp(min=0).float()


def fit_segmentation_probe(
    train: FrozenMaps,
    num_classes: int,
    ignore_index: int,
    settings: SegmentationProbeSettings | None = None,
    device: torch.device | str = "cpu",
) -> SegmentationProbe:
    """Fit a probe by cross-entropy on the grid of the finest maps, from zero weights; deterministic.

    Args:
        train: maps and labels.
        num_classes: classes are 0 ... num_classes - 1.
        ignore_index: label of positions that do not count.
        settings: default `SegmentationProbeSettings()`.
        device: where it is fitted.
    """
    settings = settings or SegmentationProbeSettings()
    probe = SegmentationProbe(train.maps, num_classes).to(device)
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
    )
    steps_an_epoch = -(-len(train) // settings.batch_size)
    steps = settings.epochs * steps_an_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(train), generator=generator).split(settings.batch_size):
            logits = probe([map_[chosen].to(device) for map_ in train.maps])
            labels = train.labels[chosen].to(device)
            counted = (labels != ignore_index).sum().clamp(min=1)  # a batch may hold ignored positions alone
            loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / counted
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe


@torch.no_grad()
def evaluate_segmentation_probe(
    probe: SegmentationProbe,
    maps_of: MapsOf,
    batches: Iterable[Mapping],
    num_classes: int,
    ignore_index: int,
    device: torch.device | str = "cpu",
) -> tuple[float, list[float]]:
    """Mean IoU over the classes that occur, and that of each class, at the size of each class map.

    Args:
        probe: of `fit_segmentation_probe`.
        maps_of, batches: as for `extract_maps`.
        num_classes, ignore_index: as for `fit_segmentation_probe`.
        device: where both run.
    """
    counts = torch.zeros(num_classes, 3, dtype=torch.int64)
    for images, references in _each_once(batches):
        logits = probe([map_.half() for map_ in maps_of(images.to(device))])
        for scores, labels in zip(logits, references):
            resized = F.interpolate(scores[None], labels.shape, mode="bilinear", align_corners=False)[0]
            counts += pixel_counts(resized.argmax(0), labels.to(device), num_classes, ignore_index)
    return intersection_over_union(counts)

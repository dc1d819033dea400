"""The protocols of a table: frozen features in, named metrics and the settings that they depend on out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..data import DistillationDataset, EvaluationDataset, ImageSource, ImageTransform
from ..students.features import pooled_features
from .features import Features
from .knn import knn_accuracy
from .linear import linear_probe, low_shot_probe
from .representation import feature_rank, feature_std, linear_cka
from .shares import count, share_features, whole

PROTOCOLS = ("knn", "linear", "low-shot", "representation")


@dataclass(frozen=True)
class ProtocolSettings:
    """What the metrics depend on; stated beside them.

    Attributes:
        knn_k, knn_temperature: of `knn_accuracy`; k is lowered to the number of images where there are fewer.
        shots, draws: of `low_shot_probe`.
        seed: of the linear probe's held-out part and of the few-label draws.
    """

    knn_k: int = 20
    knn_temperature: float = 0.07
    shots: tuple[int, ...] = (1, 5, 10)
    draws: int = 5
    seed: int = 0


def image_set_features(
    model: nn.Module,
    source: ImageSource,
    transform: ImageTransform,
    batch_size: int = 128,
    num_workers: int = 0,
    labels: bool = True,
) -> Features:
    """The pooled features of a stock model of all readable images of a split, on the model's device.

    Of several processes, each gets those of its share.

    Args:
        model: gives them.
        source: the split.
        transform: a deterministic one.
        batch_size, num_workers: of the loader.
        labels: keep those of the split, which must have some.
    """
    dataset = EvaluationDataset(source, transform) if labels else DistillationDataset(source, transform, seed=0)
    device = next(model.parameters()).device
    function = partial(pooled_features, model)
    return share_features(function, dataset, batch_size, device, num_workers=num_workers, module=model)


def run_protocols(
    bank: Features,
    queries: Features,
    protocols: Sequence[str] = PROTOCOLS,
    settings: ProtocolSettings | None = None,
    teacher_queries: Features | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Metrics by name, accuracies in [0, 1].

    Args:
        bank: labelled features to look up or to train probes on; where processes share them out, they stay so.
        queries: labelled features to classify; each process gets all of them.
        protocols: some of `PROTOCOLS`.
        settings: default `ProtocolSettings()`.
        teacher_queries: a teacher's features of the queries, shared out like them, for their similarity (linear CKA)
            to the student's.
        device: through which the features are passed, block by block.

    Raises:
        ValueError: there is no such protocol, or its settings do not fit the features.
    """
    settings = settings or ProtocolSettings()
    unknown = set(protocols) - set(PROTOCOLS)
    if unknown:
        raise ValueError(f"there is no protocol {sorted(unknown)[0]!r}: choose from {', '.join(PROTOCOLS)}.")
    queries = whole(queries)
    metrics: dict[str, float] = {}
    if "knn" in protocols:
        k = min(settings.knn_k, count(bank))
        metrics["knn_accuracy"] = knn_accuracy(bank, queries, k=k, temperature=settings.knn_temperature, device=device)
    if "linear" in protocols:
        result = linear_probe(bank, queries, seed=settings.seed, device=device)
        metrics |= {"linear_accuracy": result.accuracy, "linear_l2": result.l2}
    if "low-shot" in protocols:
        few = low_shot_probe(
            bank, queries, shots=settings.shots, draws=settings.draws, seed=settings.seed, device=device
        )
        for shots, (mean, deviation) in few.items():
            metrics |= {f"{shots}_shot_accuracy": mean, f"{shots}_shot_deviation": deviation}
    if "representation" in protocols:
        metrics |= {"feature_rank": feature_rank(queries.features), "feature_std": feature_std(queries.features)}
        if teacher_queries is not None:
            metrics["teacher_cka"] = linear_cka(queries.features, whole(teacher_queries).features)
    return metrics


def best_device() -> torch.device:
    """The accelerator if there is one."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")

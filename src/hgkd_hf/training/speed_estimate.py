"""How fast a training will be, by its measured parts: what a worker reads, what is collated, what a step takes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from ..data import model_inputs
from ..data.dataset import Samples
from .memory_estimate import gigabytes, trial

READ_IMAGES, READ_SECONDS = 64, 5.0  # after so many or so long, enough is read


@dataclass(frozen=True)
class SpeedEstimate:
    """Images a second of each stage, measured one after the other on this machine.

    Attributes:
        read: of one worker: a row, its decoding, its crop, its mask.
        collate: of one process.
        step: of one process, forward and backward, with what moves and normalises a batch; no optimizer, no gradients
            that are sent to others.
        bytes_per_image: as stored; None where files are not on this machine.
        batch_bytes: of a collated batch, which goes to the device.
    """

    read: float
    collate: float
    step: float
    bytes_per_image: float | None
    batch_bytes: int

    def stages(self, workers: int, cores: int) -> dict[str, float]:
        """Images a second of one process with `workers`, of which no more than `cores` read at a time, by stage.

        Without workers, a process reads, collates and trains in turns.
        """
        if not workers:
            alone = 1 / (1 / self.read + 1 / self.collate + 1 / self.step)
            return {"reading, collating and the step in turns": alone}
        reading = min(workers, cores) / (1 / self.read + 1 / self.collate)
        return {"the step": self.step, "reading": reading}

    def describe(self, images: int, rows: int | None, processes: int, workers: int, cores: int) -> dict[str, str]:
        """The facts for a run of `images` in all, on `processes`, over data of `rows` (None: a stream)."""
        stages = self.stages(workers, cores)
        slowest = min(stages, key=stages.get)
        speed = processes * stages[slowest]
        parts = f"step {self.step:.3g}, collate {self.collate:.3g}, one worker reads {self.read:.3g}"
        facts = {
            "speed": f"about {speed:.3g} images a second on {processes} process(es), bound by {slowest}; measured "
            f"alone, images a second: {parts} ({workers} worker(s) a process, {cores} core(s) for them)",
            "time": f"about {timedelta(seconds=round(images / speed))} without evaluations and checkpoints",
        }
        if self.bytes_per_image is not None:
            whole = "" if rows is None else f", {gigabytes(round(rows * self.bytes_per_image))} a pass"
            rate = gigabytes(round(speed * self.bytes_per_image))
            facts["bytes"] = f"{self.bytes_per_image / 1e3:.3g} kB an image{whole}; {rate} read a second"
            facts["bytes"] += f", {gigabytes(self.batch_bytes)} a batch to the device"
        return facts


def estimate_speed(
    model: nn.Module,
    dataset: Samples,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    device: torch.device,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
) -> SpeedEstimate:
    """Read some samples, and run two steps with a batch of them, the second of which counts.

    The model ends with its running statistics as before. All processes must call it, since steps of several
    processes wait for each other.

    Args:
        model: called with a batch, gives an output with `loss`; on `device`.
        dataset: of the training.
        collate: samples to a batch.
        device: of the training.
        batch_size: images of a batch of one process.
        autocast: makes the context of a forward.
    """
    reader = iter(dataset)
    samples = list(islice(reader, 1))  # files are opened, a stream has begun
    start = time.perf_counter()
    for sample in islice(reader, READ_IMAGES):
        samples.append(sample)
        if time.perf_counter() - start > READ_SECONDS:
            break
    read = max(1, len(samples) - 1) / (time.perf_counter() - start)
    samples = (samples * -(-batch_size // len(samples)))[:batch_size]
    times = []
    with trial(model):
        for _ in range(2):
            marks = [time.perf_counter()]
            batch = collate(samples)
            marks.append(time.perf_counter())
            inputs = model_inputs(dataset, send_to_device(batch, device))
            inputs.pop("sample_index", None)
            with autocast():
                loss = model(**inputs).loss
            loss.backward()
            loss.item()  # waits for the device
            marks.append(time.perf_counter())
            times.append(marks)
    model.zero_grad(set_to_none=True)
    begun, collated, done = times[-1]
    return SpeedEstimate(
        read=read,
        collate=batch_size / (collated - begun),
        step=batch_size / (done - collated),
        bytes_per_image=_stored_bytes(dataset),
        batch_bytes=sum(value.nbytes for value in batch.values()),
    )


def _stored_bytes(dataset: Samples) -> float | None:
    """The median size of the first images, as they are stored."""
    source, sizes = dataset.source, []
    for row in islice(iter(dataset.rows), READ_IMAGES):
        image = row[source.image_column] or {}
        if image.get("bytes") is not None:
            sizes.append(len(image["bytes"]))
        elif file := source.access.file(image.get("path")):
            sizes.append(os.path.getsize(file))
    return statistics.median(sizes) if sizes else None

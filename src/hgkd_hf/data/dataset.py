"""Samples of distillation: views of an image, the cells of it that the student does not see, its label."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.data
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor

from hgkd_hf.data.augment import ImageTransform, MultiCropTransform, sample_generator
from hgkd_hf.data.decode import CorruptImageError
from hgkd_hf.data.labels import labelled
from hgkd_hf.data.mixing import Mixing
from hgkd_hf.data.skipped import append_skipped
from hgkd_hf.data.source import ImageSource
from hgkd_hf.sparse.masking import num_visible_cells, random_cell_mask

logger = logging.getLogger(__name__)

# So many broken images in a row are no accident of the data but a wrong column or a lost disk.
MAX_TRIES = 32


class Samples:
    """What the map-style and the streaming dataset share: the sample, the epoch, and the record of bad images."""

    _streams = False

    def __init__(
        self,
        source: ImageSource,
        transform: ImageTransform | MultiCropTransform,
        *,
        seed: int,
        cell_grid: tuple[int, int] | None = None,
        mask_ratio: float = 0.0,
        return_labels: bool = False,
        mixing: Mixing | None = None,
        skipped_log: str | os.PathLike[str] | None = None,
    ) -> None:
        if (source.num_rows is None) != self._streams:
            fitting, flag = (
                ("DistillationDataset", "set") if self._streams else ("StreamingDistillationDataset", "drop")
            )
            is_streamed = "is not" if self._streams else "is"
            raise ValueError(f"{source.name!r} {is_streamed} streamed: use {fitting}, or {flag} --streaming.")
        source = labelled(source) if return_labels else source
        if mixing is not None and not return_labels:
            raise ValueError("mixing mixes labels too: pass return_labels=True.")
        if cell_grid is not None:
            num_visible_cells(cell_grid, mask_ratio)  # refuses a wrong ratio here rather than in a worker
        self.source = source
        self.transform = transform
        self.seed = seed
        self.cell_grid = cell_grid
        self.mask_ratio = mask_ratio
        self.return_labels = return_labels
        self.mixing = mixing
        self.skipped_log = skipped_log
        columns = [source.image_column] + ([source.label_column] if return_labels else [])
        self.rows = source.dataset.select_columns(columns)  # an unused mask or caption column need not be read
        # Shared memory: workers that live through epochs see the new epoch, and the bad rows they find are seen here.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._bad = torch.zeros(self._num_slots(), dtype=torch.bool).share_memory_()

    @property
    def num_skipped(self) -> int:
        """How many bad images all workers of this process have met, each counted once."""
        return int(self._bad.sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of all samples read from now on, in workers that are running too."""
        self._epoch[0] = epoch

    def normalize(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of samples as a model's input: 8-bit pixels become normalised float32 on the device they are on."""
        return {
            name: self.transform.normalize(value)
            if name.endswith("pixel_values") and value.dtype == torch.uint8
            else value
            for name, value in batch.items()
        }

    def _decode(self, row: dict, index: int) -> Image.Image:
        return self.source.decode(row, min_side=self.transform.min_decoded_side, name=f"row {index}")

    def _views(self, image: Image.Image, index: int, key: int, epoch: int, purpose: str) -> dict[str, Tensor]:
        """What is shown of the image of row `index`, augmented by (seed, epoch, key, purpose)."""
        views = self.transform(image, sample_generator(self.seed, epoch, key, purpose))
        return views if isinstance(views, dict) else {"pixel_values": views}

    def _sample(
        self, image: Image.Image, row: dict, index: int, key: int, epoch: int, purpose: str = "view"
    ) -> dict[str, Tensor | int]:
        sample = self._views(image, index, key, epoch, purpose)
        if self.cell_grid is not None:
            generator = sample_generator(self.seed, epoch, key, "mask")
            sample["bool_masked_pos"] = random_cell_mask(self.cell_grid, self.mask_ratio, generator)
        sample["sample_index"] = index
        if self.return_labels:
            label = self.source.label(row)
            sample["labels"] = label if self.mixing is None else self.mixing.soft_label(label)
        return sample

    def _skip(self, index: int, row: dict, error: CorruptImageError) -> None:
        """Count a bad image; the first time in this process, say which."""
        slot = index % len(self._bad)
        if self._bad[slot]:
            return
        self._bad[slot] = True
        logger.warning("Skipped: %s", error)
        if self.skipped_log is not None:
            path = (row[self.source.image_column] or {}).get("path")
            append_skipped(self.skipped_log, index, path, str(error))

    def _num_slots(self) -> int:
        """Length of the record of bad rows, in which each has its own place."""
        return len(self.rows)


class DistillationDataset(Samples, torch.utils.data.Dataset):
    """Map-style samples; sample i is a function of (seed, epoch, i) alone.

    A sample is a dict of `pixel_values` (3, H, W) uint8, or what a `MultiCropTransform` gives; `bool_masked_pos`
    (gh, gw) bool, True = hidden (if there is a cell grid); `sample_index`, the row; and `labels` (if asked for), the
    class, or with `mixing` (num_labels,) probabilities.

    A row whose image cannot be decoded is replaced by the next that can (its image, label and `sample_index`, with
    the crop and mask of the row asked for, so that the two views differ). It is counted once in `num_skipped`, named
    once in the log, and written as `row <tab> path <tab> reason` to `skipped_log` (see `read_skipped`).

    Args:
        source: rows, not streaming.
        transform: image -> `pixel_values`.
        seed: of crops, flips, colours and masks.
        cell_grid: (gh, gw) cells of a mask, or None for no masks.
        mask_ratio: share of the cells that are hidden.
        return_labels: add `labels`.
        mixing: mix every sample with another, drawn by (seed, epoch, i) too.
        skipped_log: text file that names bad samples, appended to.

    Raises:
        ValueError: the source streams, or labels are asked of a source without.
    """

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def skipped_share(self) -> float:
        """Share of the rows that workers of this process have found bad so far."""
        return self._bad.sum().item() / len(self)

    @property
    def num_usable(self) -> int:
        """Number of rows, but for those that workers of this process have found bad so far."""
        return len(self) - self.num_skipped

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """Read a sample.

        Raises:
            IndexError: no such row.
            CorruptImageError: this row and the next 31 are all bad.
        """
        index, epoch = range(len(self))[index], int(self._epoch)
        sample = self._read(index, index, epoch)
        if self.mixing is not None and self.mixing.needs_partner:
            generator = sample_generator(self.seed, epoch, index, "mix")
            partner = self._read(int(torch.randint(len(self), (), generator=generator)), index, epoch, "partner view")
            mixed, share = self.mixing.mix(sample["pixel_values"], partner["pixel_values"], generator)
            sample["pixel_values"] = mixed
            sample["labels"] = share * sample["labels"] + (1 - share) * partner["labels"]
        return sample

    def _read(self, index: int, key: int, epoch: int, purpose: str = "view") -> dict[str, Tensor | int]:
        """The sample of row `index`, or of the next that is not bad, augmented by (seed, epoch, key, purpose)."""
        for step in range(min(MAX_TRIES, len(self))):
            current = (index + step) % len(self)
            row = self.rows[current]
            try:
                image = self._decode(row, current)
            except CorruptImageError as error:
                self._skip(current, row, error)
                last = error
            else:
                return self._sample(image, row, current, key, epoch, purpose)
        raise all_bad(self.source, last)


class EvaluationDataset(DistillationDataset):
    """Deterministic labelled samples, for kNN and probes: `pixel_values`, `labels`, `sample_index`.

    Raises:
        ValueError: the transform is a training one, the source streams, or it has no labels.
    """

    def __init__(
        self, source: ImageSource, transform: ImageTransform, *, skipped_log: str | os.PathLike[str] | None = None
    ) -> None:
        if transform.train:
            raise ValueError("An evaluation must not be random: build its ImageTransform with train=False.")
        super().__init__(source, transform, seed=0, return_labels=True, skipped_log=skipped_log)


def collate(samples: list[dict[str, Tensor | int]]) -> dict[str, Tensor]:
    """Samples -> batch: `pixel_values` (B, 3, H, W) uint8, `bool_masked_pos` (B, gh, gw) bool, int64 (B,) others."""
    # numpy asks Linux for huge pages, torch does not: of 256 crops most of the time would go to faults of small ones.
    return {key: torch.from_numpy(np.stack([np.asarray(sample[key]) for sample in samples])) for key in samples[0]}


def model_inputs(dataset: torch.utils.data.Dataset, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of a dataset's samples, on its device, as a model takes it: ours are normalised, others' already are."""
    return dataset.normalize(batch) if isinstance(dataset, Samples) else batch


class ImageLoader(torch.utils.data.DataLoader):
    """A loader whose batches are on a device, and normalised there: what a model takes.

    `Trainer` has a loader of its own, and does the same (`BaseTrainer._prepare_inputs`).

    Args:
        dataset: of samples.
        batch_size: samples of a batch.
        device: of the batches.
        options: further ones of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self, dataset: torch.utils.data.Dataset, batch_size: int, device: torch.device | str = "cpu", **options: Any
    ) -> None:
        super().__init__(dataset, batch_size, collate_fn=collate, **options)
        self.device = device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """One pass."""
        for batch in super().__iter__():
            yield model_inputs(self.dataset, send_to_device(batch, self.device))


def all_bad(source: ImageSource, last: CorruptImageError) -> CorruptImageError:
    """The error of a dataset that `MAX_TRIES` rows in a row hold no image of."""
    return CorruptImageError(
        f"Too many rows of {source.name!r} in a row hold no readable image (the last: {str(last).rstrip('.')}): "
        f"check the files, and --image_column, which is {source.image_column!r}."
    )

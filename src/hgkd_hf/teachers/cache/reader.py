"""Reading a teacher's cache: checked when it is opened, mapped into memory, one view of one image at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from ...checkpoints.whole_folders import MANIFEST, fault
from .info import DATA_FILE, INFO_FILE, CacheInfo, Shard
from .storage import decode

if TYPE_CHECKING:
    from datasets import Dataset

_READERS = 8  # threads that compute checksums


@dataclass(frozen=True)
class CachedView:
    """One view of one image, and what the teacher saw in it.

    Attributes:
        row: of the image; another than the one asked for where that could not be decoded.
        box: (left, top, right, bottom), the crop in pixels of the decoded image.
        flip: whether the crop was mirrored.
        features: (C, h, w) float32, the maps of all layers, one after the other.
    """

    row: int
    box: tuple[int, int, int, int]
    flip: bool
    features: Tensor


def open_cache(name_or_path: str) -> TeacherCache:
    """Open a cache by its folder or Hub id.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: see `TeacherCache`.
    """
    return TeacherCache(find_cache(name_or_path))


def cache_settings(name_or_path: str) -> dict[str, Any]:
    """The settings of a distillation that a cache decides, by their names, but for those that are not set.

    Raises:
        FileNotFoundError: there is no such cache.
    """
    settings = CacheInfo.load(find_cache(name_or_path)).settings
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in settings.items()
        if value is not None
    }


def find_cache(name_or_path: str) -> Path:
    """The folder of a cache, which is downloaded if that is a Hub id.

    Raises:
        FileNotFoundError: it is neither.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(name_or_path, repo_type="dataset"))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"there is no cache {name_or_path!r}, neither a folder nor, as far as can be seen, a dataset of the Hub: "
            "correct --teacher_cache."
        ) from error


class TeacherCache:
    """What a teacher saw in the views of a set of images; its files stay on the disk and are mapped into memory.

    Its shards are Arrow files with the columns `row`, `view`, `seed`, `box` (4,), `flip`, `features` (C * h * w,) and,
    if they are int8, `scale` (C,): plain `datasets.load_dataset(folder)` reads them too.

    Args:
        folder: the cache's folder.

    Attributes:
        info: what it holds.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: it is not complete, or damaged; the message names the first such shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.info = Path(folder), CacheInfo.load(folder)
        damaged = find_damaged(self.folder, self.info.shards)
        if damaged:
            shard, wrong = next(iter(damaged.items()))
            raise ValueError(
                f"{len(damaged)} of the {len(self.info.shards)} shards of the cache {self.folder} are missing or "
                f"damaged, the first {shard.name} ({wrong}): repair it by the `hgkd teach` command that wrote it."
            )

    @property
    def digest(self) -> str:
        """Of all that is in it, wherever it lies."""
        digest = hashlib.blake2b((self.folder / INFO_FILE).read_bytes(), digest_size=16)
        for shard in self.info.shards:
            digest.update((self.folder / shard.name / MANIFEST).read_bytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """A clause on what is stored."""
        return f"cached in {self.info.views} view(s) as {self.info.storage}"

    def __len__(self) -> int:
        """Number of views of all images."""
        return self.info.rows * self.info.views

    def read(self, row: int, view: int) -> CachedView:
        """The view of a row.

        Raises:
            IndexError: there is no such row or view.
        """
        if not (0 <= row < self.info.rows and 0 <= view < self.info.views):
            raise IndexError(f"view {view} of row {row} is not among {self.info.views} of {self.info.rows} rows.")
        table = self._rows[view * self.info.rows + row]
        scale = _values(table, "scale") if self.info.storage == "int8" else None
        return CachedView(
            table["row"][0].as_py(),
            tuple(table["box"][0].as_py()),
            table["flip"][0].as_py(),
            decode(_values(table, "features"), scale, self.info.grid),
        )

    @cached_property
    def _rows(self) -> Dataset:
        from datasets import (  # not above: every distiller knows caches, few runs have one
            Dataset,
            concatenate_datasets,
        )

        parts = [Dataset.from_file(str(self.folder / shard.name / DATA_FILE)) for shard in self.info.shards]
        return concatenate_datasets(parts).with_format("arrow")


def find_damaged(folder: Path, shards: Sequence[Shard]) -> dict[Shard, str]:
    """The shards that are not there or not as they were written, and what is wrong; reads every byte."""
    with ThreadPoolExecutor(_READERS) as threads:  # a checksum lets other threads run
        faults = threads.map(lambda shard: fault(folder / shard.name), shards)
        return {shard: wrong for shard, wrong in zip(shards, faults) if wrong is not None}


def _values(table: pa.Table, column: str) -> Tensor:
    """The one entry of a column of lists; copied, since the files are mapped read-only."""
    return torch.from_numpy(np.array(table[column].chunk(0).flatten()))

"""Writing a teacher's cache, shard by shard: shards that are whole are kept, so that the same command resumes."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...checkpoints.folders import RunStopped
from ...checkpoints.lock import FILE as LOCK_FILE
from ...checkpoints.whole_folders import PARTIAL, complete_folder, why_full
from .info import DATA_FILE, INFO_FILE, CacheInfo, Shard
from .reader import find_damaged
from .storage import encode

logger = logging.getLogger(__name__)

BLOCK_BYTES = 2**26  # of rows that are written at once


def check_folder(folder: str | Path, info: CacheInfo) -> None:
    """Refuse a folder in which the cache cannot be written or resumed; nothing is changed.

    Raises:
        ValueError: a cache was begun there with other settings, or something else is there.
    """
    folder = Path(folder)
    if (folder / INFO_FILE).is_file():
        CacheInfo.load(folder).check_continues(info, folder)
    elif folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise ValueError(f"{folder} holds other files: choose an empty or a new folder with --output_dir.")


def shards_to_write(folder: str | Path, info: CacheInfo) -> list[Shard]:
    """The shards that a cache lacks, in order; nothing is changed.

    Shards that are whole are kept, those of fewer views too.

    Args:
        folder: of the cache, which need not be there.
        info: what is to be in it.

    Raises:
        ValueError: see `check_folder`.
    """
    check_folder(folder, info)
    folder = Path(folder)
    damaged = find_damaged(folder, info.shards)
    for shard, wrong in damaged.items():
        if (folder / shard.name).is_dir():
            logger.warning("Shard %s is damaged (%s) and is to be written again.", shard.name, wrong)
    return list(damaged)


def begin_cache(folder: str | Path, info: CacheInfo) -> list[Shard]:
    """Make the folder of a cache, or resume one; what was half written is deleted. See `shards_to_write`."""
    folder = Path(folder)
    shards = shards_to_write(folder, info)
    folder.mkdir(parents=True, exist_ok=True)
    info.save(folder)
    for path in folder.glob(f"view-*/*{PARTIAL}"):
        shutil.rmtree(path)
    return shards


def write_shards(
    folder: str | Path,
    info: CacheInfo,
    shards: Sequence[Shard],
    views: Dataset,
    see: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    progress: bool = True,
) -> None:
    """Show the teacher the views of some shards, and write what it sees.

    A batch does not go beyond its shard, so that values do not depend on which shards are written.

    Args:
        folder: of the cache, begun by `begin_cache`.
        info: what is in it.
        shards: to be written by this process.
        views: (view, row) -> `pixel_values`, `sample_index`, `box`, `flip`.
        see: `pixel_values` (B, 3, H, W) uint8 to maps (B, C, h, w) float32, which may lie on any device.
        batch_size: images that the teacher sees at once.
        num_workers: processes that decode images.
        progress: show a bar.

    Raises:
        RunStopped: the disk is full.
        ValueError: the teacher gives features that are not finite.
    """
    batches = (  # not a list, which may be longer than the memory
        [(shard.view, row) for row in range(start, min(start + batch_size, shard.stop))]
        for shard in shards
        for start in range(shard.start, shard.stop, batch_size)
    )
    loader = iter(DataLoader(views, batch_sampler=batches, num_workers=num_workers))
    total = sum(shard.stop - shard.start for shard in shards)
    with tqdm(total=total, unit=" images", disable=not progress) as bar:
        for written, shard in enumerate(shards):
            partial = Path(folder, shard.name + PARTIAL)
            own = islice(loader, math.ceil((shard.stop - shard.start) / batch_size))
            try:
                partial.mkdir(parents=True)
                _write(partial / DATA_FILE, info.columns.arrow_schema, _taught(info, shard, own, see, bar))
                complete_folder(partial)
            except OSError as error:
                reason = why_full(error)
                if reason is None:
                    raise
                shutil.rmtree(partial, ignore_errors=True)
                raise RunStopped(
                    f"the disk of {folder} {reason}, and {len(shards) - written} shards of the cache are still to be "
                    "written: free some space, then resume with the same command; what is written is kept."
                ) from error


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches of rows as larger ones: a reader keeps an object for each."""
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
        held: list[pa.RecordBatch] = []
        for batch in batches:
            held.append(batch)
            if sum(part.nbytes for part in held) >= BLOCK_BYTES:
                stream.write_batch(pa.concat_batches(held))
                held = []
        if held:
            stream.write_batch(pa.concat_batches(held))


@torch.no_grad()
def _taught(
    info: CacheInfo,
    shard: Shard,
    batches: Iterable[dict[str, Tensor]],
    see: Callable[[Tensor], Tensor],
    bar: tqdm,
) -> Iterator[pa.RecordBatch]:
    """The rows of a shard."""
    schema = info.columns.arrow_schema
    for batch in batches:
        values, scale = encode(see(batch["pixel_values"]), info.storage)
        count = len(values)
        columns = {
            "row": batch["sample_index"],
            "view": torch.full((count,), shard.view, dtype=torch.int32),
            "seed": torch.full((count,), info.seed),
            "box": batch["box"],
            "flip": batch["flip"],
            "features": values,
            "scale": scale,
        }
        arrays = [_column(columns[name].cpu().numpy()) for name in schema.names]
        yield pa.record_batch(arrays, schema=schema)
        bar.update(count)


def _column(values: np.ndarray) -> pa.Array:
    """Values (B,) as they are, (B, n) as lists."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

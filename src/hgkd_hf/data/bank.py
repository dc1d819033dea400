"""A bank of labelled images that a probe looks up or learns from, and the queries that it classifies."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.compute

from hgkd_hf.data.labels import align_classes, labelled
from hgkd_hf.data.source import ImageSource
from hgkd_hf.data.splits import named_splits

logger = logging.getLogger(__name__)

LOOKED_AT = 256
# So much of the bank is read at most to find images of it again; only those of a query's size are.
_MAX_BYTES = 2**30
_MAX_FILES = 20_000
# Slices of one split may overlap a little.
_REFUSED_SHARE = 0.5


def bank_and_queries(bank: ImageSource, queries: ImageSource) -> tuple[ImageSource, ImageSource]:
    """Both without rows that have no label, and with the bank's classes in both.

    Queries that are images of the bank find themselves, so that their accuracy says nothing. How many there are is
    logged.

    Raises:
        ValueError: bank and queries are of one split, and most of the queries looked at are in the bank; there are no
            labels; or the classes do not match (see `align_classes`).
    """
    bank = labelled(bank)
    if bank.class_names is None:
        queries = labelled(queries)
    else:
        queries = align_classes(queries, bank.class_names, f"split {bank.split!r}")
    shared, looked_at = shared_images(bank, queries)
    said = (
        f"{shared} of {looked_at} images looked at of split {queries.split!r} are among those of split {bank.split!r} "
        f"of {bank.name!r}, where each finds itself"
    )
    of_one_split = bank.name == queries.name and named_splits(bank.split) & named_splits(queries.split)
    if of_one_split and shared > _REFUSED_SHARE * looked_at:
        raise ValueError(
            f"{said}: choose another {queries.flags.split}, or cut the split in two, such as {bank.flags.split} "
            f"'train[:90%]' and {queries.flags.split} 'train[90%:]'."
        )
    if shared:
        logger.warning("%s: their accuracy is too good.", said)
    return bank, queries


def shared_images(bank: ImageSource, queries: ImageSource) -> tuple[int, int]:
    """How many of at most 256 evenly spread queries are images of the bank's split, and of how many.

    The bank's split counts, not only the rows that were drawn from it. Images that are files are compared by their
    place, and of a bank of up to 20,000 files by their bytes too; images within tables by their bytes.
    """
    count = min(queries.num_rows, LOOKED_AT)
    rows = queries.dataset.select_columns([queries.image_column])
    asked = [rows[step * queries.num_rows // count][queries.image_column] or {} for step in range(count)]
    files = [queries.access.file(image.get("path")) if image.get("bytes") is None else None for image in asked]
    images = [image.get("bytes") or _read(file) for image, file in zip(asked, files)]
    sizes = {len(data) for data in images if data}
    paths = _paths(bank)
    candidates = chain(_embedded(bank, sizes), _files(bank, paths, sizes) if len(paths) <= _MAX_FILES else ())
    found, read = set(), 0
    for data in candidates:
        read += len(data)
        if read > _MAX_BYTES:
            break
        found.add(_digest(data))
    places = {os.path.join(bank.access.folder or "", path) for path in paths}
    return sum(file in places or (bool(data) and _digest(data) in found) for file, data in zip(files, images)), count


def _embedded(source: ImageSource, sizes: set[int]) -> Iterator[bytes]:
    """The images within a source's table that have one of these sizes."""
    for chunk in source.dataset.data.column(source.image_column).chunks:
        lengths = np.asarray(pyarrow.compute.binary_length(chunk.field("bytes")).fill_null(-1))
        for index in np.flatnonzero(np.isin(lengths, list(sizes))):
            yield chunk[int(index)]["bytes"].as_py()


def _paths(source: ImageSource) -> list[str]:
    """The paths that stand for images in a source's table."""
    return [
        path
        for chunk in source.dataset.data.column(source.image_column).chunks
        for path in chunk.filter(chunk.field("bytes").is_null()).field("path").to_pylist()
        if path
    ]


def _files(source: ImageSource, paths: Iterable[str], sizes: set[int]) -> Iterator[bytes]:
    """The files that are there, may be opened and have one of these sizes."""
    for file in map(source.access.file, paths):
        if file and os.path.getsize(file) in sizes:
            yield _read(file)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _read(file: str | None) -> bytes | None:
    return file and Path(file).read_bytes()

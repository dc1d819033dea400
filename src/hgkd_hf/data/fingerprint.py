"""A cheap hash of what is trained on, which notices that a data set's files were replaced under the same name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import numpy as np
import pyarrow.compute
from datasets import Dataset, IterableDataset

from hgkd_hf.data.access import ImageAccess

SIZED_ROWS = 4096
SAMPLED_ROWS = 64
STREAMED_ROWS = 16
_EDGE = 4096  # bytes that are read at either end of a sampled file


def rows_fingerprint(
    dataset: Dataset | IterableDataset, image_column: str, label_column: str | None, access: ImageAccess
) -> str:
    """32 hexadecimal digits over the names, sizes, labels and some bytes of rows of undecoded images.

    All names, labels and sizes of embedded images count; of image files the sizes of 4,096, evenly spaced; and both
    ends of 64 images. Of a stream, its first 16 rows. Names are those below the dataset's folder, which may move.
    """
    folder = access.folder
    digest = hashlib.blake2b(digest_size=16)

    def add(*values: object) -> None:
        digest.update(repr(values).encode())

    if isinstance(dataset, IterableDataset):
        columns = [image_column, label_column] if label_column else [image_column]
        for row in dataset.select_columns(columns).take(STREAMED_ROWS):
            data = (row[image_column] or {}).get("bytes")
            add(data and hashlib.blake2b(data).digest(), row[label_column] if label_column else None)
        return digest.hexdigest()

    add(len(dataset), dataset.features[label_column] if label_column else None)
    images = dataset.data.column(image_column)
    for chunk in images.chunks:
        sizes = pyarrow.compute.binary_length(chunk.field("bytes"))  # of the offsets alone: no image is read
        digest.update(np.asarray(sizes.fill_null(-1)).astype(np.int64).tobytes())
        for path in chunk.field("path").to_pylist():
            add(path and os.path.relpath(path, folder) if folder and os.path.isabs(path or "") else path)
    if label_column:
        for chunk in dataset.data.column(label_column).chunks:
            add(*chunk.to_pylist())
    rows = dataset.select_columns([image_column])
    for index in _spread(len(rows), SIZED_ROWS):
        image = rows[index][image_column] or {}
        file = None if image.get("bytes") else access.file(image.get("path"))
        add(file and os.path.getsize(file))
    for index in _spread(len(rows), SAMPLED_ROWS):
        image = rows[index][image_column] or {}
        add(*_edges(image.get("bytes"), access.file(image.get("path"))))
    return digest.hexdigest()


def _spread(count: int, most: int) -> Iterable[int]:
    """At most `most` whole numbers below `count`, evenly spaced."""
    return (step * count // min(count, most) for step in range(min(count, most)))


def _edges(data: bytes | None, file: str | None) -> tuple[bytes, ...]:
    if data is not None:
        return data[:_EDGE], data[-_EDGE:]
    if file is None:
        return ()
    with open(file, "rb") as stream:
        head = stream.read(_EDGE)
        stream.seek(-min(_EDGE, os.path.getsize(file)), os.SEEK_END)
        return head, stream.read()

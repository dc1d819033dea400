"""Memory stays as it is over a million rows of a stream."""

import io
import resource
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_hf.data import EndlessStream, ImageSource, StreamingDistillationDataset, collate
from hgkd_hf.data.augment import ImageTransform

ROWS, SHARDS, EVERY = 1_000_000, 16, 20_000


class Zeros(ImageTransform):
    """Costs nothing."""

    def __call__(self, image, generator=None):
        return torch.zeros(3, 4, 4)


def rows(shard):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    for number in shard:
        for row in range(ROWS // SHARDS):
            yield {"image": {"bytes": buffer.getvalue(), "path": f"{number}-{row}.png"}}


def memory() -> float:
    """Of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat():
    features = datasets.Features({"image": datasets.Image(decode=False)})
    stream = datasets.IterableDataset.from_generator(rows, features, {"shard": list(range(SHARDS))})
    source = ImageSource(stream, "image", None, None, "synthetic", None, "train", None)
    data = StreamingDistillationDataset(source, Zeros(4, train=True), seed=0, shuffle_buffer=1000)
    samples, used = iter(EndlessStream(data, collate)), []
    while len(used) < ROWS // EVERY:
        for _, _ in islice(samples, EVERY):
            pass
        used.append(memory())
        print(f"{len(used) * EVERY:>9,} rows {used[-1]:7.1f} MB", flush=True)
    settled = used[len(used) // 10 :]
    slope = np.polyfit(np.arange(len(settled)) * EVERY / 100_000, settled, 1)[0]
    print(f"{slope:.3f} MB in 100,000 rows")
    assert slope < 1

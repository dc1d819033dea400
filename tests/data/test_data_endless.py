"""A stream as long as one likes, gone on with from any batch."""

from itertools import islice

import datasets
import pytest
import torch
from test_data_dataset import COUNT, OPTIONS, TRAIN, same, write
from torch.utils.data import DataLoader

from hgkd_hf.data import EndlessStream, StreamingDistillationDataset, collate, load_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "parquet", shards=3, bad=(0, 4, COUNT - 1))


def stream(folder, **settings):
    return StreamingDistillationDataset(load_images(folder, streaming=True), TRAIN, **OPTIONS, **settings)


def batches(folder, start, count, workers, **settings):
    data = EndlessStream(stream(folder, **settings), 4, start)
    return list(islice(DataLoader(data, batch_size=4, collate_fn=collate, num_workers=workers), count))


def test_passes_follow_each_other_and_only_the_view_changes(folder):
    samples = list(islice(iter(EndlessStream(stream(folder), 4)), 3 * COUNT))
    good = [index for index in range(COUNT) if index not in (0, 4, COUNT - 1)]
    # Bad rows take the image of the next good one; of the last row, that is the next pass's first.
    first = [1, *good[:3], 5, *good[3:]]
    assert [sample["sample_index"] for sample in samples[: len(first)]] == first
    assert [sample["sample_index"] for sample in samples[len(first) : len(first) + 3]] == [1, 1, 1]
    one_pass = list(stream(folder))
    assert all(map(same, one_pass, samples))
    later = stream(folder)
    later.set_epoch(1)
    by_index = {sample["sample_index"]: sample for sample in samples[COUNT : 2 * COUNT]}
    assert same({**by_index[7]}, next(sample for sample in later if sample["sample_index"] == 7))


@pytest.mark.parametrize("shuffle_buffer", [0, 8])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_goes_on_from_any_batch(folder, workers, shuffle_buffer, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s at the end of every epoch
    whole = batches(folder, 0, 15, workers, shuffle_buffer=shuffle_buffer)
    for start in (2, 5, 12):
        start *= max(workers, 1)
        rest = batches(folder, start, max(0, 15 - start), workers, shuffle_buffer=shuffle_buffer)
        assert all(map(same, rest, whole[start:]))


def test_batches_must_divide_among_workers(folder):
    with pytest.raises(ValueError, match="3 batches do not divide among 2 workers"):
        batches(folder, 3, 1, 2)


def test_a_stream_without_rows_for_a_worker_ends(folder):
    loader = DataLoader(EndlessStream(stream(folder), 4), batch_size=4, collate_fn=collate, num_workers=5)
    assert len(list(islice(loader, 8))) == 8
    assert torch.is_tensor(next(iter(loader))["pixel_values"])

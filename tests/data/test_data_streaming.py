"""An endless stream: own shards for every reader, each row once a pass, resumed by any number of readers."""

import io
import json
import tarfile
import threading
from collections import Counter
from itertools import islice
from math import inf, nan

import datasets
import pytest
from test_data_dataset import COUNT, OPTIONS, TRAIN, png, same, write
from torch.utils.data import DataLoader

from hgkd_hf.data import EndlessStream, StreamingDistillationDataset, collate, load_images
from hgkd_hf.data.positions import Piece, Position, Window

BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "parquet", shards=3, bad=(0, 4, COUNT - 1))


def stream(folder, shuffle_buffer=0, **settings):
    source = load_images(folder, streaming=True, **settings)
    return StreamingDistillationDataset(source, TRAIN, **OPTIONS, shuffle_buffer=shuffle_buffer)


class Readers:
    """All processes of a run, one after the other in this one: batches of each, step by step."""

    def __init__(self, data, world=1, workers=0, states=()):
        numbers = {"world_size": world, "workers": workers, "states": states}
        self.streams = [EndlessStream(data, collate, rank=rank, **numbers) for rank in range(world)]
        options = {"batch_size": BATCH, "num_workers": workers}
        self.loaders = [iter(DataLoader(each, collate_fn=each.collate, **options)) for each in self.streams]

    def steps(self, count):
        """For each step the batches of all processes."""
        for _ in range(count):
            batches = [next(loader) for loader in self.loaders]
            for each, batch in zip(self.streams, batches):
                each.note(batch)
            yield batches

    def states(self):
        return json.loads(json.dumps([each.state() for each in self.streams]))


def all_same(found, wanted):
    pairs = [(a, b) for step, other in zip(found, wanted, strict=True) for a, b in zip(step, other, strict=True)]
    return all(map(same, *zip(*pairs)))


def rows(steps):
    return [index for batches in steps for batch in batches for index in batch["sample_index"].tolist()]


def test_passes_follow_each_other_and_only_the_view_changes(folder):
    data = stream(folder)
    samples = [sample for sample, _ in islice(iter(EndlessStream(data, collate)), 3 * COUNT)]
    one_pass = list(data)
    assert all(map(same, one_pass, samples))
    labels = [sample["labels"] for sample in samples]
    # Bad rows take the image and label of the next good one; of the last row, that is the next pass's first.
    good = [None if index in (0, 4, COUNT - 1) else index % 3 for index in range(COUNT)]
    wanted = [label if label is not None else (*good[i + 1 :], 1)[0] for i, label in enumerate(good)]
    assert labels[:COUNT] == labels[COUNT : 2 * COUNT] == wanted
    data.set_epoch(1)
    assert len({float(s["pixel_values"].sum()) for s in (samples[2], samples[COUNT + 2], samples[2 * COUNT + 2])}) == 3
    assert all(map(same, list(data)[1:], samples[COUNT + 1 :]))


@pytest.mark.parametrize("shuffle_buffer", [0, 5])
@pytest.mark.parametrize(("shards", "world", "workers"), [(1, 1, 0), (1, 2, 0), (1, 1, 2), (16, 2, 0), (16, 2, 2)])
def test_every_row_once_a_pass_whoever_reads_it(tmp_path, shards, world, workers, shuffle_buffer):
    """48 rows are as many for each reader; a sample is the same for any number of them."""
    data = stream(write(tmp_path / "parquet", shards=shards, count=48), shuffle_buffer)
    steps = list(Readers(data, world, workers).steps(2 * 48 // (BATCH * world)))
    first, second = rows(steps[: len(steps) // 2]), rows(steps[len(steps) // 2 :])
    assert sorted(first) == sorted(second)
    assert len(set(first)) == len(first) == 48
    if world == 1 and not workers:
        assert (first == second) == (not shuffle_buffer)
    alone = {sample["sample_index"]: sample for sample in data}
    for batch in steps[0]:
        for place, index in enumerate(batch["sample_index"].tolist()):
            assert same({key: value[place] for key, value in batch.items()}, alone[index])


def test_shards_are_read_by_one_process_alone(tmp_path, monkeypatch):
    opened, original = [], datasets.IterableDataset.shard

    def shard(self, num_shards, index, **settings):
        opened.append((self, index))
        return original(self, num_shards, index, **settings)

    monkeypatch.setattr(datasets.IterableDataset, "shard", shard)
    folder = write(tmp_path / "parquet", shards=16, count=64)
    for reading in range(2):
        data = stream(folder)  # of its own, since the thread of the one before may still read ahead
        one = EndlessStream(data, collate, rank=reading, world_size=2)
        list(islice(iter(one), 30))
        assert [index for rows, index in opened if rows is data.rows][:8] == list(range(reading, 16, 2))


@pytest.mark.parametrize("shuffle_buffer", [0, 5])
def test_unequal_shards_are_read_equally_often(tmp_path, shuffle_buffer):
    """5 shards for 2 processes: both have a batch in every step, and each row is read in both passes of two."""
    data = stream(write(tmp_path / "parquet", shards=5, count=26), shuffle_buffer)
    steps = list(Readers(data, 2).steps(2 * 26 // (2 * BATCH)))
    assert all(len(batch["sample_index"]) == BATCH for batches in steps for batch in batches)
    counts = Counter(rows(steps))
    assert len(counts) == 26
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("shuffle_buffer", [0, 3, 8])
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_resumed_anywhere_it_is_the_same(folder, world, workers, shuffle_buffer):
    data = stream(folder, shuffle_buffer)
    whole = list(Readers(data, world, workers).steps(12))
    for start in (5,) if workers else (1, 4, 7):
        before = Readers(data, world, workers)
        list(before.steps(start))
        rest = list(Readers(data, world, workers, before.states()).steps(12 - start))
        assert all_same(rest, whole[start:])


def test_few_rows_are_read_again(folder, monkeypatch):
    data, wanted = stream(folder), 5 * COUNT // BATCH
    before = Readers(data)
    list(before.steps(wanted))
    read, original, earlier = [], datasets.IterableDataset.iter, set(threading.enumerate())

    def iterate(self, batch_size):
        for batch in original(self, batch_size):
            if threading.current_thread() not in earlier:  # which may still read ahead
                read.append(1)
            yield batch

    monkeypatch.setattr(datasets.IterableDataset, "iter", iterate)
    list(Readers(data, states=before.states()).steps(1))
    assert BATCH <= len(read) <= BATCH + 10, "what is wanted, and what is read ahead"


@pytest.mark.parametrize("shuffle_buffer", [0, 5])
@pytest.mark.parametrize("numbers", [(2, 0, 4, 0), (4, 0, 2, 0), (1, 3, 2, 1), (2, 2, 3, 0), (3, 0, 1, 2)])
def test_other_numbers_of_readers_take_over(tmp_path, numbers, shuffle_buffer):
    """Whatever the numbers: when the pass is over, each row was given as often as the others."""
    world, workers, new_world, new_workers = numbers
    data = stream(write(tmp_path / "parquet", shards=12, count=96), shuffle_buffer)
    for start in (1, 3, 5):
        before = Readers(data, world, workers)
        counts = Counter(rows(before.steps(start)))
        assert set(counts.values()) == {1}
        after = Readers(data, new_world, new_workers, before.states())
        for each in after.streams:  # what is left of the pass, without the next
            epoch = max(position.epoch for position in each.positions)
            for number, position in enumerate(each.positions):
                left = data.read(position, 0, 1, end=epoch)
                counts.update(sample["sample_index"] for sample, _ in left)
                assert position.epoch == epoch, number
        assert len(counts) == 96
        assert set(counts.values()) == {1}, "none lost, none twice"
        assert rows(after.steps(2))


def test_taken_over_again_before_the_pass_is_over(tmp_path):
    data, counts, states = stream(write(tmp_path / "parquet", shards=12, count=96), 5), Counter(), ()
    for world in (2, 3, 1, 4):
        readers = Readers(data, world, states=states)
        counts.update(rows(readers.steps(1)))
        states = readers.states()
    (left,) = EndlessStream(data, collate, states=states).positions
    counts.update(sample["sample_index"] for sample, _ in data.read(left, 0, 1, end=left.epoch))
    assert len(counts) == 96
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("kind", ["tar", "folder", "parquet", "max_samples"])
def test_kinds_of_streams(tmp_path, kind):
    settings = {"max_samples": 10} if kind == "max_samples" else {}
    if kind == "tar":
        for shard in range(3):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
                for row in range(shard, COUNT, 3):
                    for name, content in ((f"{row}.png", png(row)), (f"{row}.cls", str(row % 3).encode())):
                        entry = tarfile.TarInfo(name)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
        settings["label_column"] = "cls"
    elif kind == "folder":
        for row in range(COUNT):
            (tmp_path / "abc"[row % 3]).mkdir(exist_ok=True)
            (tmp_path / "abc"[row % 3] / f"{row}.png").write_bytes(png(row))
    else:
        write(tmp_path / "parquet", shards=3)
        tmp_path /= "parquet"
    data, count = stream(tmp_path, **settings), settings.get("max_samples", COUNT)
    readers = Readers(data, 2)
    whole = list(readers.steps(8))
    again = Readers(data, 2)
    list(again.steps(3))
    assert all_same(list(Readers(data, 2, states=again.states()).steps(5)), whole[3:])
    assert len(set(rows(whole))) == count


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"positions": [{}], "turn": 0},
        {"positions": [{"epoch": 0, "pieces": [{"epoch": "../x"}], "windows": []}], "turn": 0},
        {
            "positions": [{"epoch": 0, "pieces": [{"epoch": 0, "start": -1, "stop": 1, "step": 1}], "windows": []}],
            "turn": 0,
        },
        {"positions": [Position(0, (Piece(0, 0, 2**40, 1),)).to_dict()], "turn": 0},
        {"positions": [Position(0, (), (Window((), 2**40, 0),)).to_dict()], "turn": 0},
        {"positions": [Position(0, (), (Window((), 2, -1),)).to_dict()], "turn": 0},
        {"positions": [Position(0, (), (Window((), 2.5, 0),)).to_dict()], "turn": 0},
        *({"positions": [{**Position().to_dict(), "epoch": epoch}], "turn": 0} for epoch in (inf, nan, True, "1", -1)),
        *({"positions": [Position().to_dict()], "turn": turn} for turn in (inf, nan, "x", [])),
        [],
    ],
)
def test_a_state_that_is_none_is_refused(folder, state):
    with pytest.raises(ValueError, match="the checkpoint does not say where the stream was"):
        EndlessStream(stream(folder), collate, states=[state])


def test_a_buffer_shuffles_differently_in_every_pass(tmp_path):
    data = stream(write(tmp_path / "parquet", shards=3), 8)

    def order(epoch):
        data.set_epoch(epoch)
        return [sample["sample_index"] for sample in data]

    first, again, later = order(0), order(0), order(1)
    assert first == again
    assert len({tuple(first), tuple(later), tuple(sorted(first))}) == 3
    assert sorted(first) == sorted(later)

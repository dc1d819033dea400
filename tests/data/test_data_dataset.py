"""A sample depends on (seed, epoch, index) alone; bad images are replaced, counted and named."""

import io
import pickle

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from torch.utils.data import DataLoader

from hgkd_hf.data import (
    CorruptImageError,
    DistillationDataset,
    EvaluationDataset,
    ImageLoader,
    ImageTransform,
    StreamingDistillationDataset,
    collate,
    load_images,
    sample_generator,
)
from hgkd_hf.sparse.masking import num_visible_cells, random_cell_mask

COUNT = 13
TRAIN = ImageTransform(16, True)
OPTIONS = {"seed": 5, "cell_grid": (4, 4), "mask_ratio": 0.6, "return_labels": True}


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 28, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, bad=(), count=COUNT, shards=None):
    """A dataset of `count` random images, class i % 3, where rows `bad` hold no image."""
    rows = Dataset.from_dict(
        {
            "image": [{"bytes": b"broken" if i in bad else png(i % COUNT), "path": f"{i}.png"} for i in range(count)],
            "label": [i % 3 for i in range(count)],
        },
        features=Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b", "c"])}),
    )
    if shards is None:
        rows.save_to_disk(folder)
    else:
        folder.mkdir()
        for i in range(shards):
            rows.shard(shards, i, contiguous=True).to_parquet(folder / f"train-{i:05}-of-{shards:05}.parquet")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "saved")


@pytest.fixture
def dataset(saved):
    return DistillationDataset(load_images(saved), TRAIN, **OPTIONS)


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(torch.as_tensor(left[k]), torch.as_tensor(right[k])) for k in left
    )


def read(dataset, **options) -> list[dict]:
    """All samples in the order of their index."""
    samples = [sample for batch in DataLoader(dataset, batch_size=4, collate_fn=list, **options) for sample in batch]
    return sorted(samples, key=lambda sample: sample["sample_index"])


def test_sample(dataset):
    assert len(dataset) == COUNT
    sample = dataset[4]
    assert list(sample) == ["pixel_values", "bool_masked_pos", "sample_index", "labels"]
    assert (sample["pixel_values"].shape, sample["pixel_values"].dtype) == ((3, 16, 16), torch.uint8)
    assert (sample["bool_masked_pos"].shape, sample["bool_masked_pos"].dtype) == ((4, 4), torch.bool)
    assert (sample["sample_index"], sample["labels"]) == (4, 1)
    assert same(dataset[-1], dataset[COUNT - 1])
    with pytest.raises(IndexError):
        dataset[COUNT]


def test_sample_is_its_generators_work(dataset):
    dataset.set_epoch(3)
    image = Image.open(io.BytesIO(png(4)))
    assert torch.equal(dataset[4]["pixel_values"], TRAIN(image, sample_generator(5, 3, 4, "view")))
    mask = random_cell_mask((4, 4), 0.6, sample_generator(5, 3, 4, "mask"))
    assert torch.equal(dataset[4]["bool_masked_pos"], mask)


def test_mask_count_is_exact(saved):
    for ratio in (0.0, 0.3, 0.6, 0.75):
        dataset = DistillationDataset(load_images(saved), TRAIN, **OPTIONS | {"mask_ratio": ratio})
        for i in range(COUNT):
            assert int((~dataset[i]["bool_masked_pos"]).sum()) == num_visible_cells((4, 4), ratio)


def test_wrong_mask_ratio_is_refused_at_once(saved):
    with pytest.raises(ValueError, match="mask_ratio"):
        DistillationDataset(load_images(saved), TRAIN, **OPTIONS | {"mask_ratio": 1.0})


def test_no_grid_no_mask_no_labels(saved):
    plain = DistillationDataset(load_images(saved), TRAIN, seed=5, cell_grid=None, mask_ratio=0.6)
    assert list(plain[0]) == ["pixel_values", "sample_index"]
    assert plain.rows.column_names == ["image"]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_and_order_change_nothing(dataset, num_workers):
    dataset.set_epoch(2)
    wanted = [dataset[i] for i in reversed(range(COUNT))][::-1]
    torch.manual_seed(num_workers)
    found = read(dataset, num_workers=num_workers, shuffle=True)
    assert len(found) == COUNT
    assert all(map(same, found, wanted))


def test_epochs_indices_and_seeds_differ(saved, dataset):
    first = [dataset[i] for i in range(COUNT)]
    dataset.set_epoch(1)
    second = [dataset[i] for i in range(COUNT)]
    other = DistillationDataset(load_images(saved), TRAIN, **OPTIONS | {"seed": 6})
    for i in range(COUNT):
        assert not torch.equal(first[i]["pixel_values"], second[i]["pixel_values"])
        assert not torch.equal(first[i]["pixel_values"], other[i]["pixel_values"])
    for left, right in ((first, second), (first, first[1:] + first[:1])):
        equal = sum(torch.equal(a["bool_masked_pos"], b["bool_masked_pos"]) for a, b in zip(left, right))
        assert equal <= 2
    dataset.set_epoch(0)
    assert all(map(same, first, (dataset[i] for i in range(COUNT))))


@pytest.mark.parametrize("streaming", [False, True])
def test_set_epoch_reaches_persistent_workers(saved, streaming):
    kind = StreamingDistillationDataset if streaming else DistillationDataset
    dataset = kind(load_images(saved, streaming=streaming), TRAIN, **OPTIONS)
    loader = DataLoader(dataset, batch_size=4, collate_fn=list, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 4):
        dataset.set_epoch(epoch)
        found = [sample for batch in loader for sample in batch]
        fresh = kind(load_images(saved, streaming=streaming), TRAIN, **OPTIONS)
        fresh.set_epoch(epoch)
        assert all(map(same, found, fresh))
        assert len(found) == COUNT


def test_bad_images_are_replaced_counted_and_named(tmp_path, caplog):
    source = load_images(write(tmp_path / "bad", bad=(3, 4, 12)))
    log = tmp_path / "skipped.txt"
    dataset = DistillationDataset(source, TRAIN, **OPTIONS, skipped_log=log)
    good = DistillationDataset(load_images(write(tmp_path / "good")), TRAIN, **OPTIONS)
    sample = dataset[3]
    assert (sample["sample_index"], sample["labels"]) == (5, 2)
    assert torch.equal(sample["bool_masked_pos"], good[3]["bool_masked_pos"]), "the mask of the row asked for"
    assert not torch.equal(sample["pixel_values"], dataset[5]["pixel_values"]), "another view than the row's own"
    assert same(dataset[5], good[5])
    assert dataset[12]["sample_index"] == 0
    assert dataset.num_skipped == 3
    assert same(dataset[3], sample)
    assert dataset.num_skipped == 3, "images, not how often they are met"
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    assert [line[:2] for line in lines] == [["3", "3.png"], ["4", "4.png"], ["12", "12.png"]]
    assert lines[0][2] == "row 3 (3.png) cannot be decoded: its format is not known."
    assert sum("row 3 (3.png)" in record.message for record in caplog.records) == 1


def test_bad_images_are_counted_in_workers(tmp_path):
    log = tmp_path / "skipped.txt"
    for streaming, kind in ((False, DistillationDataset), (True, StreamingDistillationDataset)):
        folder = tmp_path / f"bad{streaming}"
        source = load_images(write(folder, bad=(3, 8)), streaming=streaming)
        dataset = kind(source, TRAIN, **OPTIONS, skipped_log=log)
        assert len(read(dataset, num_workers=2)) == COUNT
        assert dataset.num_skipped == 2
    assert len(log.read_text().splitlines()) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_without_names_are_told_apart_and_counted_once(tmp_path, streaming):
    features = Features({"image": datasets.Image()})
    images = [{"bytes": b"broken" if i in (1, 4) else png(i), "path": None} for i in range(6)]
    Dataset.from_dict({"image": images}, features).save_to_disk(tmp_path / "bad")
    kind = StreamingDistillationDataset if streaming else DistillationDataset
    dataset = kind(load_images(tmp_path / "bad", streaming=streaming), TRAIN, seed=0)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert len(read(dataset)) == 6
        assert dataset.num_skipped == 2


def test_bad_rows_of_a_stream_are_replaced_as_elsewhere(tmp_path):
    folder = write(tmp_path / "bad", bad=(0, 3, 4))
    stream = StreamingDistillationDataset(load_images(folder, streaming=True), TRAIN, **OPTIONS)
    assert all(map(same, stream, DistillationDataset(load_images(folder), TRAIN, **OPTIONS)))


@pytest.mark.parametrize("streaming", [False, True])
def test_share_of_bad_rows_counts_each_once(tmp_path, streaming):
    source = load_images(write(tmp_path / "bad", bad=(3, 8, 9)), streaming=streaming)
    dataset = (StreamingDistillationDataset if streaming else DistillationDataset)(source, TRAIN, **OPTIONS)
    for _ in range(1 if streaming else 3):
        read(dataset, num_workers=2)
    assert dataset.skipped_share == (3 / 100 if streaming else 3 / COUNT)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [5, 40])
def test_nothing_but_bad_images_is_an_error(tmp_path, streaming, count):
    source = load_images(write(tmp_path / "bad", bad=range(count), count=count), streaming=streaming)
    kind = StreamingDistillationDataset if streaming else DistillationDataset
    dataset = kind(source, TRAIN, **OPTIONS)
    if streaming and count < 32:
        assert list(dataset) == []
        return
    with pytest.raises(CorruptImageError, match=r"(?s)the last: row \d+ .*--image_column, which is 'image'"):
        next(iter(dataset))
    assert dataset.num_skipped == min(32, count)


def test_every_source_gives_the_same_samples(tmp_path):
    sources = [load_images(write(tmp_path / "saved")), load_images(write(tmp_path / "parquet", shards=2))]
    for i in range(COUNT):
        folder = tmp_path / "images" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02}.png").write_bytes(png(i))
    images = load_images(tmp_path / "images")
    order = [i for label in range(3) for i in range(label, COUNT, 3)]  # an imagefolder comes class by class
    wanted = [dict(sample) for sample in DistillationDataset(sources[0], TRAIN, **OPTIONS)]
    assert all(map(same, DistillationDataset(sources[1], TRAIN, **OPTIONS), wanted))
    evaluation = ImageTransform(16, False)
    for position, sample in enumerate(EvaluationDataset(images, evaluation)):
        twin = EvaluationDataset(sources[0], evaluation)[order[position]]
        assert sample["labels"] == twin["labels"]
        assert torch.equal(sample["pixel_values"], twin["pixel_values"])
    stream = StreamingDistillationDataset(load_images(tmp_path / "saved", streaming=True), TRAIN, **OPTIONS)
    for workers in (0, 1):
        assert all(map(same, read(stream, num_workers=workers), wanted))


def test_evaluation_is_deterministic(saved):
    dataset = EvaluationDataset(load_images(saved), ImageTransform(16, False))
    first = [dict(dataset[i]) for i in range(COUNT)]
    dataset.set_epoch(7)
    assert all(map(same, first, read(dataset, num_workers=2)))
    assert list(first[0]) == ["pixel_values", "sample_index", "labels"]
    with pytest.raises(ValueError, match="train=False"):
        EvaluationDataset(load_images(saved), TRAIN)


def test_wrong_kind_of_source_and_missing_labels(saved, tmp_path):
    with pytest.raises(ValueError, match="is streamed: use StreamingDistillationDataset, or drop --streaming"):
        DistillationDataset(load_images(saved, streaming=True), TRAIN, **OPTIONS)
    with pytest.raises(ValueError, match="is not streamed: use DistillationDataset, or set --streaming"):
        StreamingDistillationDataset(load_images(saved), TRAIN, **OPTIONS)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(png(0))
    with pytest.raises(ValueError, match="has no labels: name their column with --label_column"):
        DistillationDataset(load_images(tmp_path / "flat"), TRAIN, **OPTIONS)


def test_collate(dataset):
    batch = collate([dataset[2], dataset[7]])
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "pixel_values": ((2, 3, 16, 16), torch.uint8),
        "bool_masked_pos": ((2, 4, 4), torch.bool),
        "sample_index": ((2,), torch.int64),
        "labels": ((2,), torch.int64),
    }
    assert batch["sample_index"].tolist() == [2, 7]
    assert torch.equal(batch["pixel_values"][1], dataset[7]["pixel_values"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_gives_what_a_model_takes(dataset, num_workers):
    batches = list(ImageLoader(dataset, 4, sampler=[7, 2, 5, 0, 1], num_workers=num_workers))
    assert [batch["sample_index"].tolist() for batch in batches] == [[7, 2, 5, 0], [1]]
    wanted = torch.stack([TRAIN.normalize(dataset[index]["pixel_values"]) for index in (7, 2, 5, 0)])
    assert torch.equal(batches[0]["pixel_values"], wanted)
    assert torch.equal(batches[1]["bool_masked_pos"][0], dataset[1]["bool_masked_pos"])


def test_spawned_workers_can_receive_the_dataset(dataset):
    assert same(pickle.loads(pickle.dumps(dataset))[3], dataset[3])

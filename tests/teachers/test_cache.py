"""A teacher's cache: what is written is what live training sees, in any order and after any death."""

import json
import pickle
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

from hgkd_hf.checkpoints.folders import RunStopped
from hgkd_hf.data import DistillationDataset, ImageTransform, Mixing, load_images
from hgkd_hf.data.cached import CachedTeacherDataset, TeacherViews
from hgkd_hf.teachers.cache import CachedTeacher, CacheInfo, TeacherCache, begin_cache, recall, write_shards
from hgkd_hf.teachers.cache.storage import decode, encode

ROWS, VIEWS = 11, 3


@pytest.fixture
def images(tmp_path):
    """Eleven pictures of different sizes; the fifth is broken, so that the sixth stands in for it."""
    generator = torch.Generator().manual_seed(0)
    for index in range(ROWS):
        noise = torch.randint(0, 255, (40 + index, 60 - index, 3), generator=generator)
        path = tmp_path / "images" / "train" / "ab"[index > 8] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    (tmp_path / "images" / "train" / "a" / "04.png").write_bytes(b"no image")
    return load_images(tmp_path / "images")


TRANSFORM = ImageTransform(64, train=True)


@pytest.fixture
def info(teacher, images) -> CacheInfo:
    return CacheInfo(
        teacher=teacher.name_or_path,
        teacher_revision=None,
        teacher_weights="0",
        teacher_dtype="float32",
        teacher_layers=teacher.layers,
        teacher_image_size=teacher.image_size,
        hidden_sizes=teacher.hidden_sizes,
        grid=teacher.grid,
        dataset="images",
        dataset_revision=None,
        dataset_config=None,
        split="train",
        max_samples=None,
        rows=ROWS,
        fingerprint=images.fingerprint,
        transform={"image_size": 64, "crop_scale": TRANSFORM.crop_scale},
        seed=7,
        views=VIEWS,
        storage="float32",
        images_per_shard=4,
    )


@pytest.fixture
def see(teacher):
    return lambda pixel_values: torch.cat(teacher(pixel_values / 255).feature_maps, 1)


@pytest.fixture
def write(info, images, see):
    """Write a cache, or what of it is missing."""

    def write(folder, info=info, see=see, **settings):
        settings = {"batch_size": 3, "progress": False, **settings}
        shards = begin_cache(folder, info)
        write_shards(folder, info, shards, TeacherViews(images, TRANSFORM, seed=info.seed), see, **settings)
        return folder

    return write


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("storage", "error"), [("float32", 0), ("float16", 2**-11), ("int8", 1 / 254)])
def test_storage(storage, error):
    """The error is at most half a step: of float16 relative to the value, of int8 to the channel's largest."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 8, 3, 4, generator=generator) * torch.logspace(-3, 3, 8).view(-1, 1, 1)
    maps[0, 0] = 0
    values, scale = encode(maps, storage)
    again = torch.stack(
        [decode(value, None if scale is None else scale[index], (3, 4)) for index, value in enumerate(values)]
    )
    reference = maps.abs() if storage == "float16" else maps.abs().amax((2, 3), keepdim=True)
    assert ((again - maps).abs() <= 1.001 * error * reference + 1e-7).all()


@pytest.mark.parametrize(
    ("storage", "wrong"),
    [
        (s, w)
        for s in ("float32", "float16", "int8")
        for w in (float("nan"), float("-inf"), 1e9)
        if (s, w) != ("float32", 1e9)
    ],
)
def test_features_that_do_not_fit_are_refused(storage, wrong):
    with pytest.raises(ValueError, match=f"not finite as {storage}.*--teacher_dtype"):
        encode(torch.full((1, 1, 2, 2), wrong), storage)


def test_cached_samples_are_those_of_live_training(write, images, see, tmp_path):
    cache = TeacherCache(write(tmp_path / "cache"))
    settings = {"seed": 7, "cell_grid": (4, 4), "mask_ratio": 0.5}
    live = DistillationDataset(images, TRANSFORM, **settings)
    cached = CachedTeacherDataset(images, TRANSFORM, cache=cache, **settings)
    for epoch in range(VIEWS + 1):
        live.set_epoch(epoch)
        cached.set_epoch(epoch)
        for row in torch.randperm(ROWS).tolist():
            sample, wanted = cached[row], live[row]
            features = sample.pop("teacher_features")
            assert features.shape == (64, 8, 8)
            torch.testing.assert_close(features, see(sample["pixel_values"][None])[0], rtol=1e-5, atol=1e-5)
            if epoch == VIEWS:  # the views begin anew, the masks do not
                assert torch.equal(wanted.pop("bool_masked_pos"), sample.pop("bool_masked_pos"))
                live.set_epoch(0)
                wanted = {name: live[row][name] for name in wanted}
                live.set_epoch(epoch)
            assert sample.keys() == wanted.keys()
            for name, value in wanted.items():
                assert torch.equal(torch.as_tensor(sample[name]), torch.as_tensor(value)), name


def test_masks_follow_the_run_and_views_the_cache(write, images, tmp_path):
    cache = TeacherCache(write(tmp_path / "cache"))
    samples = [
        CachedTeacherDataset(images, TRANSFORM, cache=cache, seed=seed, cell_grid=(4, 4), mask_ratio=0.5)[0]
        for seed in (7, 8)
    ]
    assert torch.equal(samples[0]["pixel_values"], samples[1]["pixel_values"])
    assert not torch.equal(samples[0]["bool_masked_pos"], samples[1]["bool_masked_pos"])


def test_rows_say_what_was_seen(write, images, tmp_path):
    cache = TeacherCache(write(tmp_path / "cache"))
    assert len(cache) == ROWS * VIEWS
    assert [cache.read(row, 0).row for row in range(ROWS)] == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9, 10]
    drawn = {(view.box, view.flip) for view in (cache.read(0, number) for number in range(VIEWS))}
    assert len(drawn) == VIEWS
    assert all(0 <= box[0] < box[2] <= 60 and 0 <= box[1] < box[3] <= 40 for box, _ in drawn)
    for row, view in ((ROWS, 0), (-1, 0), (0, VIEWS), (0, -1)):
        with pytest.raises(IndexError):
            cache.read(row, view)


def test_cache_goes_to_other_processes(write, tmp_path):
    cache = TeacherCache(write(tmp_path / "cache"))
    before = cache.read(3, 1)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again.read(3, 1).features, before.features)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_size_is_known_before(write, info, storage, tmp_path):
    info = replace(info, storage=storage, images_per_shard=100)
    folder = write(tmp_path / "cache", info, batch_size=100)
    written = sum(len(content) for name, content in contents(folder).items() if name.endswith(".arrow"))
    header = 2000  # of each file
    assert abs(written - info.bytes_per_image * ROWS * VIEWS) < header * VIEWS


def test_any_lives_and_processes_write_the_same(write, info, images, see, tmp_path):
    """Bit by bit: begun, killed between shards and in one, more views asked for later, shared out among three."""
    whole = contents(write(tmp_path / "whole"))
    folder = write(tmp_path / "killed", replace(info, views=1))
    shutil.rmtree(folder / "view-000" / "00001-of-00003")
    half = folder / "view-000" / "00001-of-00003.partial"
    half.mkdir()
    (half / "data.arrow").write_bytes(b"half")
    assert contents(write(folder)) == whole
    assert begin_cache(folder, info) == []
    assert CacheInfo.load(folder) == info

    views = TeacherViews(images, TRANSFORM, seed=info.seed)
    shards = begin_cache(tmp_path / "shared", info)
    for rank in (2, 0, 1):
        write_shards(tmp_path / "shared", info, shards[rank::3], views, see, batch_size=3, progress=False)
    assert contents(tmp_path / "shared") == whole


def test_workers_write_the_same(write, tmp_path):
    assert contents(write(tmp_path / "two", num_workers=2)) == contents(write(tmp_path / "none"))


def test_cache_is_not_opened_before_it_is_complete(write, tmp_path):
    folder = write(tmp_path / "cache")
    shutil.rmtree(folder / "view-002" / "00001-of-00003")
    with pytest.raises(ValueError, match="1 of the 9 shards .* view-002/00001-of-00003 .*hgkd teach"):
        TeacherCache(folder)


@pytest.mark.parametrize("damage", ["turned bit", "cut short", "missing", "manifest"])
def test_damaged_shard_is_named_and_repaired(write, damage, tmp_path, caplog):
    folder = write(tmp_path / "cache")
    whole = contents(folder)
    path = folder / "view-001" / "00000-of-00003" / ("manifest.json" if damage == "manifest" else "data.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"{" if damage == "manifest" else content[:-9] if damage == "cut short" else content)
    with pytest.raises(ValueError, match="view-001/00000-of-00003"):
        TeacherCache(folder)
    assert contents(write(folder)) == whole
    assert "view-001/00000-of-00003 is damaged" in caplog.text
    assert TeacherCache(folder).read(0, 1)


def test_other_settings_are_refused_by_name(write, info, tmp_path):
    folder = write(tmp_path / "cache")
    changes = {"teacher": "other", "teacher_weights": "1", "teacher_layers": (1, -1), "fingerprint": "2", "seed": 8}
    changes |= {
        "transform": {**info.transform, "crop_scale": (0.5, 1.0)},
        "storage": "int8",
        "images_per_shard": 5,
        "views": 2,
    }
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"\\({name} was .*, now .*--output_dir"):
            begin_cache(folder, replace(info, **{name: value}))


def test_folders_that_hold_something_else(info, tmp_path):
    tmp_path = tmp_path / "other"
    tmp_path.mkdir()
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        begin_cache(tmp_path, info)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(FileNotFoundError, match="not a teacher's cache"):
        TeacherCache(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        TeacherCache(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps(asdict(info) | {"version": 99}))
    with pytest.raises(ValueError, match="format 99"):
        TeacherCache(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher_layers", [1, "--push_to_hub"]),
        ("teacher_layers", 1),
        ("rows", "11"),
        ("rows", True),
        ("teacher", None),
        ("storage", "int4"),
        ("max_samples", 1.5),
        ("transform", {"crop_scale": ["--push_to_hub"]}),
        ("transform", {"image_size": None}),
        ("transform", 64),
    ],
)
def test_what_a_cache_says_is_data(info, name, value, tmp_path):
    """It may come from the Hub, and is read as settings of a run."""
    (tmp_path / "cache.json").write_text(json.dumps(asdict(info) | {name: value}))
    with pytest.raises(ValueError, match=f"cache.json gives no valid {name}"):
        CacheInfo.load(tmp_path)


def test_changed_images_are_refused(write, images, tmp_path):
    cache = TeacherCache(write(tmp_path / "cache"))
    path = tmp_path / "images" / "train" / "a" / "02.png"
    Image.new("RGB", (32, 80)).save(path)
    (path.parent / "08.png").write_bytes(b"no image")
    cached = CachedTeacherDataset(images, TRANSFORM, cache=cache, seed=0)
    assert cached[1]
    for row in (2, 8):
        with pytest.raises(ValueError, match=f"view 0 of row {row} is crop"):
            cached[row]


def test_mixed_images_are_refused(write, images, tmp_path):
    cache = TeacherCache(write(tmp_path / "cache"))
    settings = {"seed": 0, "return_labels": True}
    assert CachedTeacherDataset(images, TRANSFORM, cache=cache, mixing=Mixing(2, label_smoothing=0.1), **settings)[0]
    with pytest.raises(ValueError, match="--mixup.*--teacher_cache"):
        CachedTeacherDataset(images, TRANSFORM, cache=cache, mixing=Mixing(2, mixup=1.0), **settings)


def test_images_without_a_label_are_told_before_they_shift_the_rows(write, images, tmp_path):
    cache = TeacherCache(write(tmp_path / "cache"))
    unlabelled = replace(images, classes={0: 0})  # the class of the other two is not known
    assert CachedTeacherDataset(unlabelled, TRANSFORM, cache=cache, seed=0)[10]
    with pytest.raises(ValueError, match="saw 11 images, but 9 of .* can be used"):
        CachedTeacherDataset(unlabelled, TRANSFORM, cache=cache, seed=0, return_labels=True)


def test_full_disk(write, see, tmp_path):
    """It fills up in the sixth of nine shards; once there is room, the same command completes the cache."""
    calls = iter(range(100))

    def fail_once(pixel_values):
        if next(calls) == 9:
            raise OSError(28, "No space left on device")
        return see(pixel_values)

    with pytest.raises(RunStopped, match="4 shards of the cache are still to be written: free some space"):
        write(tmp_path / "cache", see=fail_once)
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert contents(write(tmp_path / "cache")) == contents(write(tmp_path / "whole"))


def test_cached_teacher_tells_what_the_teacher_did(info, teacher):
    stand_in = CachedTeacher(info)
    for name in ("name_or_path", "layers", "image_size", "hidden_sizes", "grid", "teacher_input"):
        assert getattr(stand_in, name) == getattr(teacher, name), name
    assert not stand_in.state_dict()
    with pytest.raises(RuntimeError, match="sees no images"):
        stand_in(torch.zeros(1, 3, 64, 64))
    images = torch.rand(2, 3, 64, 64)
    output = teacher(images)
    recalled = recall(torch.cat(output.feature_maps, 1), stand_in.hidden_sizes)
    assert all(torch.equal(*pair) for pair in zip(recalled.feature_maps, output.feature_maps, strict=True))
    torch.testing.assert_close(recalled.pooled, output.pooled)

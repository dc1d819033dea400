"""A teacher's cache on the Hub: a dataset with its card, which plain `datasets` reads and a run finds by its id."""

import shutil

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard

from hgkd_hf.hub import License, PushOptions, Source
from hgkd_hf.hub.cache_card import preview_cache, push_cache, write_cache_card
from hgkd_hf.teachers.cache import CacheInfo, TeacherCache, begin_cache, open_cache, write_shards

from .conftest import MIT
from .server import HubServer
from .store import DATASET, WRITER

REPO = "alice/cache"


@pytest.fixture(autouse=True)
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)


@pytest.fixture
def info() -> CacheInfo:
    return CacheInfo(
        teacher="alice/teacher",
        teacher_revision="0" * 40,
        teacher_weights="1",
        teacher_dtype="float32",
        teacher_layers=(2, -1),
        teacher_image_size=(8, 8),
        hidden_sizes=(3, 2),
        grid=(2, 4),
        dataset="./images",
        dataset_revision=None,
        dataset_config=None,
        split="train",
        max_samples=None,
        rows=7,
        fingerprint="2",
        transform={"image_size": 8, "crop_scale": (0.5, 1.0), "flip_probability": 0.5},
        seed=1,
        views=2,
        storage="int8",
        images_per_shard=4,
    )


class Views:
    """Samples of one number, which a teacher turns into features."""

    def __getitem__(self, key):
        view, row = key
        return {
            "pixel_values": torch.tensor(1.0 + row + 7 * view),
            "sample_index": row,
            "box": torch.tensor([0, 0, 8, row + 1], dtype=torch.int32),
            "flip": row % 2 == 0,
        }


@pytest.fixture
def cache(info, tmp_path):
    folder = tmp_path / "taught"
    ramp = torch.linspace(-1, 1, 40).view(1, 5, 2, 4)
    shards = begin_cache(folder, info)
    write_shards(folder, info, shards, Views(), lambda x: x.view(-1, 1, 1, 1) * ramp, batch_size=2, progress=False)
    write_cache_card(folder, Source("alice/teacher", True, license=MIT), Source("images", license=License("cc0-1.0")))
    return folder


def same_rows(rows, cache: TeacherCache) -> bool:
    """Whether what `datasets` reads is what the cache holds."""
    expected = [(view, row) for view in range(2) for row in range(7)]
    read = []
    for entry in rows:
        maps = torch.tensor(entry["features"]).view(5, 2, 4) * torch.tensor(entry["scale"]).view(5, 1, 1)
        cached = cache.read(entry["row"], entry["view"])
        assert (tuple(entry["box"]), entry["flip"], entry["seed"]) == (cached.box, cached.flip, 1)
        torch.testing.assert_close(maps, cached.features)
        read.append((entry["view"], entry["row"]))
    return read == expected


def test_plain_datasets_reads_it(cache, tmp_path, monkeypatch):
    opened = TeacherCache(cache)
    assert same_rows(load_dataset(str(cache), split="train", cache_dir=str(tmp_path / "datasets")), opened)
    assert same_rows(load_dataset(str(cache), split="train", streaming=True), opened)


def test_card_tells_what_it_is(cache):
    card = DatasetCard.load(cache / "README.md")
    assert card.data.license == "mit"
    assert card.data.size_categories == ["n<1K"]
    assert "teacher:alice/teacher" in card.data.tags
    for text in (
        "`alice/teacher`",
        "2, -1",
        "3 + 2 channels",
        "2 x 4 positions, int8",
        "seed 1",
        "0" * 40,
        "2 augmented",
    ):
        assert text in card.text, text
    body = card.text.partition("```python")[2].partition("```")[0].replace("path/to/this/folder", str(cache))
    names: dict = {}
    exec(body, names)
    assert names["maps"].shape == (5, 2, 4)


def test_readme_keeps_what_people_wrote(cache):
    path = cache / "README.md"
    path.write_text(path.read_text().replace("license: mit", "license: cc-by-4.0") + "\nMine.\n")
    write_cache_card(cache, Source("alice/teacher"), Source("images"))
    text = path.read_text()
    assert text.endswith("Mine.\n")
    assert "license: cc-by-4.0" in text
    assert text.count("# What `alice/teacher` sees") == 1


def test_pushed_as_a_dataset_and_opened_by_its_id(hub: HubServer, cache):
    commit = push_cache(cache, REPO, PushOptions(tag="v1", private=True))
    repo = hub.repo(REPO, DATASET)
    assert (repo.private, repo.tags) == (True, {"v1": commit.oid})
    changed = repo.log()[1].changed
    assert {"README.md", "cache.json", "view-001/00001-of-00002/data.arrow"} <= set(changed)
    assert "hgkd distill --teacher_cache alice/cache" in (cache / "README.md").read_text()
    there = open_cache(REPO)
    assert there.digest == TeacherCache(cache).digest
    assert torch.equal(there.read(3, 1).features, TeacherCache(cache).read(3, 1).features)
    hub.requests.clear()
    assert push_cache(cache, REPO).oid == commit.oid
    assert hub.count("^PUT") == hub.count("/commit/") == 0


def test_incomplete_or_unlicensed_caches_stay_here(hub: HubServer, cache):
    (cache / "README.md").unlink()
    with pytest.raises(ValueError, match="licence of .* is not known: choose the licence of the cache with --license"):
        push_cache(cache, REPO)
    assert "license: apache-2.0" in preview_cache(cache, REPO, PushOptions(), License("apache-2.0"))
    shutil.rmtree(cache / "view-000" / "00000-of-00002")
    with pytest.raises(ValueError, match="1 of the 4 shards"):
        push_cache(cache, REPO, license=License("apache-2.0"))
    assert not hub.store.repos


@pytest.mark.parametrize("name", ["alice/none", "no/such/folder", "/no/such/folder"])
def test_cache_that_is_not_there(hub: HubServer, name):
    with pytest.raises(FileNotFoundError, match=f"no cache '{name}'.*--teacher_cache"):
        open_cache(name)


def test_command_publishes_it(hub: HubServer, cache, publish, capsys):
    publish(cache, "--repo_id", REPO, "--dry_run")
    shown = capsys.readouterr().out
    assert "to the dataset alice/cache: 10 files" in shown
    assert not hub.store.repos
    publish(cache, "--repo_id", REPO)
    assert "published: " in capsys.readouterr().out
    assert (DATASET, REPO) in hub.store.repos

"""Where a student comes from, and which licence follows."""

import pytest
from datasets import Dataset

from hgkd_hf.hub.sources import License, Source, derive_license, find_source, pinned_revision

from .server import HubServer

MIT, APACHE, NC, GEMMA = License("mit"), License("apache-2.0"), License("cc-by-nc-4.0"), License("gemma")
DINO = License("other", "dinov3-license", "https://example.org/license")


def source(name: str, license: License | None) -> Source:
    return Source(name, license=license)


@pytest.mark.parametrize(
    ("weights", "data", "license", "reason"),
    [
        ([MIT], APACHE, MIT, "that of w0"),
        ([MIT, APACHE], MIT, MIT, "that of w0"),
        ([MIT], NC, NC, "inherited from data"),
        ([DINO], MIT, DINO, "inherited from w0"),
        ([DINO, MIT], DINO, DINO, "inherited from w0"),
        ([DINO], NC, None, r"several licences restrict the student: w0 (dinov3-license), data (cc-by-nc-4.0)"),
        ([GEMMA, NC], MIT, None, "several licences"),
        ([None], MIT, None, "the licence of w0 is not known"),
        ([MIT], None, None, "the licence of data is not known"),
        ([], MIT, None, "there is no teacher or checkpoint to inherit"),
        ([], NC, NC, "inherited from data"),
    ],
)
def test_license_is_derived_with_its_reason_or_not_at_all(weights, data, license, reason):
    sources = [source(f"w{index}", found) for index, found in enumerate(weights)]
    found, why = derive_license(sources, source("data", data))
    assert found == license
    assert reason in why


def test_license_of_nothing():
    assert derive_license([], None) == (None, "nothing is known of what the student was made of")


def test_license_of_a_card():
    assert License.from_metadata({"license": "mit"}) == MIT
    assert License.from_metadata({"license": "unknown"}) is None
    assert License.from_metadata({"license": ["mit", "apache-2.0"]}) is None
    assert DINO.metadata() == {
        "license": "other",
        "license_name": "dinov3-license",
        "license_link": "https://example.org/license",
    }
    assert License.from_metadata(DINO.metadata()) == DINO


def test_source_in_a_folder(tmp_path):
    folder = tmp_path / "my teacher"
    folder.mkdir()
    assert find_source(str(folder), "model") == Source("my teacher")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find_source(str(folder), "model") == Source("my teacher", license=MIT)
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert find_source(str(folder), "model") == Source("my teacher")


def test_source_on_the_hub(hub: HubServer):
    api = hub.api()
    api.create_repo("alice/teacher")
    api.upload_file(
        path_or_fileobj=b"---\nlicense: cc-by-nc-4.0\n---\n", path_in_repo="README.md", repo_id="alice/teacher"
    )
    head = api.model_info("alice/teacher").sha
    found = find_source("alice/teacher", "model")
    assert found == Source("alice/teacher", on_hub=True, revision=head, license=NC)
    assert find_source("alice/absent", "dataset") == Source("alice/absent", on_hub=True)
    hub.stop()
    assert find_source("alice/teacher", "model", "v1") == Source("alice/teacher", on_hub=True, revision="v1")


def test_offline_nothing_is_asked(hub: HubServer, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_source("alice/teacher", "model") == Source("alice/teacher", on_hub=True)
    assert hub.count(".") == 0


def test_commit_of_downloaded_files():
    data = Dataset.from_dict({"a": [1]})
    assert pinned_revision(data) is None
    sha = "0123456789" * 4
    data.info.download_checksums = {f"hf://datasets/alice/dots@{sha}/data/{part}.parquet": {} for part in "ab"}
    assert pinned_revision(data) == sha
    data.info.download_checksums["hf://datasets/alice/dots@" + "f" * 40 + "/x.parquet"] = {}
    assert pinned_revision(data) is None

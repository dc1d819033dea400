"""The test Hub through the real client: commits, pull requests, branches and tags, large files."""

import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from .conftest import FILES, REPO, WEIGHTS
from .server import HubServer
from .store import OTHER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


def status_of(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


def add(path: str, content: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content)]


def fetch(api: HfApi, path: str, **kwargs) -> bytes:
    return Path(api.hf_hub_download(REPO, path, **kwargs)).read_bytes()


def test_folder_is_one_commit(hub: HubServer, pushed: HfApi):
    first, second = hub.repo(REPO).log()
    assert (first.title, first.files) == ("initial commit", [".gitattributes"])
    assert (second.title, second.author, second.parent) == ("Push the run", "alice", first.oid)
    assert list(second.changed) == FILES
    assert second.tree["model.safetensors"].data == WEIGHTS
    assert {path for path, blob in second.tree.items() if blob.lfs} == {"model.safetensors"}
    assert hub.count("^PUT /lfs/upload") == hub.count("^POST /lfs/verify") == 1


def test_second_push_of_the_same_folder_sends_nothing(hub: HubServer, pushed: HfApi, folder: Path):
    head = hub.repo(REPO).resolve("main")
    hub.requests.clear()
    assert pushed.upload_folder(repo_id=REPO, folder_path=folder).oid == head.oid
    assert hub.repo(REPO).resolve("main") is head
    assert hub.count("^PUT") == hub.count("/commit/") == 0

    (folder / "config.json").write_text('{"a": 2}')
    pushed.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.repo(REPO).resolve("main").changed == ("config.json",)
    assert hub.repo(REPO).resolve("main").tree["model.safetensors"].data == WEIGHTS
    assert hub.count("^PUT") == 0


def test_content_that_the_repository_has_is_not_sent_under_another_name(hub: HubServer, pushed: HfApi):
    hub.requests.clear()
    pushed.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="best/model.safetensors", repo_id=REPO)
    assert hub.count("^PUT") == 0
    assert hub.repo(REPO).resolve("main").tree["best/model.safetensors"].data == WEIGHTS


def test_binary_content_and_file_endings_go_to_the_large_file_storage(hub: HubServer, pushed: HfApi):
    for name, content in {"curve.bmp": b"BM\0\0", "notes.txt": b"text", "few.npz": b"text"}.items():
        pushed.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO)
    tree = hub.repo(REPO).resolve("main").tree
    assert [tree[name].lfs for name in ("curve.bmp", "notes.txt", "few.npz")] == [True, False, True]


def test_stale_parent_is_refused(hub: HubServer, pushed: HfApi):
    stale, head = (commit.oid for commit in hub.repo(REPO).log())
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        pushed.create_commit(REPO, add("a.txt", b"a"), commit_message="late", parent_commit=stale)
    assert status_of(error) == 412
    assert hub.repo(REPO).resolve("main").oid == head
    made = pushed.create_commit(REPO, add("a.txt", b"a"), commit_message="in time", parent_commit=head[:8])
    assert hub.repo(REPO).log()[-1].oid == made.oid != head


def test_pull_request_leaves_main_alone(hub: HubServer, pushed: HfApi):
    head = hub.repo(REPO).resolve("main")
    made = pushed.create_commit(REPO, add("config.json", b"{}"), commit_message="Proposal", create_pr=True)
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert made.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert fetch(pushed, "config.json", revision="refs/pr/1") == b"{}"
    assert hub.repo(REPO).resolve("main") is head
    # More commits can go onto it, and another user may open one.
    pushed.create_commit(REPO, add("a.txt", b"a"), commit_message="More", revision="refs/pr/1")
    assert [c.title for c in hub.repo(REPO).log("refs/pr/1")[-2:]] == ["Proposal", "More"]
    theirs = hub.api(OTHER).create_commit(REPO, add("a.txt", b"b"), commit_message="Theirs", create_pr=True)
    assert hub.repo(REPO).resolve(theirs.pr_revision).author == "bob"
    assert [ref.name for ref in pushed.list_repo_refs(REPO, include_pull_requests=True).pull_requests] == [
        "refs/pr/1",
        "refs/pr/2",
    ]


def test_branch_and_tag(hub: HubServer, pushed: HfApi):
    first = hub.repo(REPO).resolve("main").oid
    pushed.create_tag(REPO, tag="v1.0")
    pushed.create_branch(REPO, branch="try/one", revision="v1.0")
    pushed.create_commit(REPO, add("config.json", b"{}"), commit_message="Other", revision="try/one")
    assert fetch(pushed, "config.json", revision="try/one") == b"{}"
    for revision in (None, "v1.0", first, first[:10]):
        assert fetch(pushed, "config.json", revision=revision) == b'{"a": 1}'
        assert pushed.model_info(REPO, revision=revision).sha == first
    refs = pushed.list_repo_refs(REPO)
    assert {ref.name for ref in refs.branches} == {"main", "try/one"}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1.0", first)]

    for again in (pushed.create_tag, pushed.create_branch):
        name = {"tag": "v1.0"} if again == pushed.create_tag else {"branch": "try/one"}
        with pytest.raises(HfHubHTTPError) as error:
            again(REPO, **name)
        assert status_of(error) == 409
        again(REPO, **name, exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        pushed.create_commit(REPO, add("a.txt", b"a"), commit_message="no such branch", revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        fetch(pushed, "config.json", revision="nowhere")
    pushed.delete_tag(REPO, tag="v1.0")
    pushed.delete_branch(REPO, branch="try/one")
    assert [ref.name for ref in pushed.list_repo_refs(REPO).branches] == ["main"]


def test_delete_and_copy(hub: HubServer, pushed: HfApi):
    operations = [
        CommitOperationCopy("model.safetensors", "best.safetensors"),
        CommitOperationCopy("config.json", "best.json"),
        CommitOperationDelete("student/"),
        CommitOperationDelete("config.json"),
    ]
    pushed.create_commit(REPO, operations, commit_message="Tidy")
    tree = hub.repo(REPO).resolve("main").tree
    assert sorted(tree) == [".gitattributes", "README.md", "best.json", "best.safetensors", "model.safetensors"]
    assert tree["best.safetensors"] == tree["model.safetensors"]
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        pushed.delete_file("config.json", REPO)


def test_pointer_to_a_file_that_never_came_is_refused(hub: HubServer, pushed: HfApi):
    upload = CommitOperationAdd("other.safetensors", os.urandom(1000))
    upload._upload_mode, upload._is_uploaded = "lfs", True
    head = hub.repo(REPO).resolve("main")
    with pytest.raises(HfHubHTTPError, match="not uploaded"):
        pushed.create_commit(REPO, [upload], commit_message="Hollow")
    assert hub.repo(REPO).resolve("main") is head


def test_upload_with_other_content_than_announced_is_refused(hub: HubServer, pushed: HfApi):
    secret = hub.store.open_upload(hub.repo(REPO), "0" * 64, 4)
    request = urllib.request.Request(f"{hub.url}/lfs/upload/{secret}", data=b"four", method="PUT")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 400
    assert "0" * 64 not in hub.repo(REPO).lfs

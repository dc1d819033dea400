"""The test Hub through the real client: users, repositories, who may see what, reading."""

import http.client
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    HfFileSystem,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)

from .conftest import REPO, WEIGHTS
from .server import HubServer
from .store import OTHER, READER, WRITER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


def status_of(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


def add(path: str, content: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content)]


def fetch(api: HfApi, path: str, **kwargs) -> bytes:
    return Path(api.hf_hub_download(REPO, path, **kwargs)).read_bytes()


def test_whoami_names_the_user_and_the_role_of_the_token(hub: HubServer):
    found = {token: hub.api(token).whoami() for token in (WRITER, READER, OTHER)}
    assert {t: (w["name"], w["auth"]["accessToken"]["role"]) for t, w in found.items()} == {
        WRITER: ("alice", "write"),
        READER: ("alice", "read"),
        OTHER: ("bob", "write"),
    }


def test_no_token_and_wrong_token(hub: HubServer, pushed: HfApi):
    with pytest.raises(LocalTokenNotFoundError):
        hub.api(None).whoami(token=True)
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as error:
        hub.api("hf_nobody").whoami()
    assert status_of(error) == 401
    for client in (hub.api("hf_nobody"), hub.api(None)):
        with pytest.raises(HfHubHTTPError) as error:
            client.create_repo("alice/other")
        assert status_of(error) == 401
    # A token that is not valid is refused even where none is needed, and the repository is not said to be missing.
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
        hub.api("hf_nobody").model_info(REPO)
    assert not isinstance(error.value, RepositoryNotFoundError)


@pytest.mark.parametrize("token", [READER, OTHER])
def test_no_right_to_create_or_to_push(hub: HubServer, pushed: HfApi, token: str):
    before = hub.repo(REPO).log()
    with pytest.raises(HfHubHTTPError, match="rights to create") as error:
        hub.api(token).create_repo("alice/other")
    assert status_of(error) == 403
    assert hub.api(token).create_repo(REPO, exist_ok=True).repo_id == REPO  # the 403 comes later, at the upload
    with pytest.raises(HfHubHTTPError, match="403 Forbidden") as error:
        hub.api(token).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO)
    assert status_of(error) == 403
    assert hub.repo(REPO).log() == before


def test_create_twice_and_delete(hub: HubServer):
    api = hub.api()
    assert api.create_repo("tiny").repo_id == REPO  # in the user's own namespace
    assert api.create_repo(REPO, repo_type="dataset").repo_type == "dataset"  # another repository
    with pytest.raises(HfHubHTTPError, match="already created") as error:
        api.create_repo(REPO)
    assert status_of(error) == 409
    api.create_repo(REPO, exist_ok=True, private=True)
    assert not api.model_info(REPO).private  # exist_ok does not change an existing repository
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    assert api.repo_exists(REPO, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)


def test_private_repository(hub: HubServer):
    owner, other, anonymous = hub.api(), hub.api(OTHER), hub.api(None)
    owner.create_repo(REPO, private=True)
    for name in ("a.txt", "b.txt"):
        owner.upload_file(path_or_fileobj=b"secret", path_in_repo=name, repo_id=REPO)
    assert owner.model_info(REPO).private
    assert fetch(owner, "a.txt") == fetch(hub.api(READER), "a.txt") == b"secret"
    for client, status in ((anonymous, 401), (other, 404)):
        for read in (
            lambda c: c.model_info(REPO),
            lambda c: c.auth_check(REPO),
            lambda c: c.get_hf_file_metadata(url=f"{hub.url}/{REPO}/resolve/main/a.txt"),
            lambda c: c.hf_hub_download(REPO, "b.txt"),
        ):
            with pytest.raises(RepositoryNotFoundError) as error:
                read(client)
            assert status_of(error) == status
    owner.update_repo_settings(REPO, private=False)
    assert fetch(anonymous, "a.txt") == b"secret"


def test_gated_repository_shows_itself_but_not_its_files(hub: HubServer, pushed: HfApi):
    pushed.update_repo_settings(REPO, gated="manual")
    other = hub.api(OTHER)
    assert other.model_info(REPO).gated == "manual"
    for client, status in ((hub.api(None), 401), (other, 403)):
        with pytest.raises(GatedRepoError) as error:
            client.auth_check(REPO)
        assert status_of(error) == status
    with pytest.raises(GatedRepoError):
        fetch(other, "config.json")
    hub.repo(REPO).granted.add("bob")
    assert fetch(other, "config.json") == b'{"a": 1}'
    with pytest.raises(HfHubHTTPError):
        other.auth_check(REPO, write=True)
    pushed.auth_check(REPO, write=True)


# -- reading ---------------------------------------------------------------------------------------------------------


def test_descriptions_agree_with_the_commit(hub: HubServer, pushed: HfApi):
    first, head = hub.repo(REPO).log()
    info = pushed.model_info(REPO, files_metadata=True)
    assert (info.sha, info.author, info.card_data.license, info.tags) == (
        head.oid,
        "alice",
        "apache-2.0",
        ["distilled"],
    )
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes == {path: len(blob.data) for path, blob in head.tree.items()}
    weights = next(sibling for sibling in info.siblings if sibling.rfilename == "model.safetensors")
    assert weights.lfs.sha256 == head.tree["model.safetensors"].sha256

    assert pushed.list_repo_files(REPO) == head.files
    assert [entry.path for entry in pushed.list_repo_tree(REPO)] == sorted([*head.files[:-1], "student"])
    below = list(pushed.list_repo_tree(REPO, "student", expand=True))
    assert [(entry.path, entry.last_commit.title) for entry in below] == [("student/config.json", "Push the run")]
    with pytest.raises(EntryNotFoundError):
        list(pushed.list_repo_tree(REPO, "nowhere"))
    entries = pushed.get_paths_info(REPO, ["config.json", "student", "nowhere"])
    assert [type(entry).__name__ for entry in entries] == ["RepoFile", "RepoFolder"]
    assert pushed.file_exists(REPO, "config.json")
    assert not pushed.file_exists(REPO, "nowhere")
    commits = pushed.list_repo_commits(REPO)
    assert [(c.commit_id, c.authors, c.title) for c in commits] == [
        (head.oid, ["alice"], "Push the run"),
        (first.oid, ["alice"], "initial commit"),
    ]


def test_file_metadata(hub: HubServer, pushed: HfApi):
    head = hub.repo(REPO).resolve("main")
    for path in ("config.json", "model.safetensors"):
        found = pushed.get_hf_file_metadata(url=f"{hub.url}/{REPO}/resolve/main/{path}")
        blob = head.tree[path]
        assert (found.commit_hash, found.etag, found.size) == (head.oid, blob.etag, len(blob.data))
    with pytest.raises(EntryNotFoundError):
        pushed.get_hf_file_metadata(url=f"{hub.url}/{REPO}/resolve/main/nowhere")


def test_cache_is_used_until_the_file_changes(hub: HubServer, pushed: HfApi):
    assert fetch(pushed, "model.safetensors") == WEIGHTS
    hub.requests.clear()
    assert fetch(pushed, "model.safetensors") == WEIGHTS
    assert (hub.count("^HEAD"), hub.count("^GET")) == (1, 0)
    pushed.upload_file(path_or_fileobj=b"new", path_in_repo="model.safetensors", repo_id=REPO)
    assert fetch(pushed, "model.safetensors") == b"new"
    snapshot = Path(pushed.snapshot_download(REPO, allow_patterns="*.json"))
    assert sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*.json")) == [
        "config.json",
        "student/config.json",
    ]


@pytest.mark.parametrize(
    ("wanted", "status", "part", "content_range"),
    [
        ("bytes=0-0", 206, slice(0, 1), "bytes 0-0/50000"),
        ("bytes=49990-60000", 206, slice(49990, None), "bytes 49990-49999/50000"),
        ("bytes=100-", 206, slice(100, None), "bytes 100-49999/50000"),
        ("bytes=-8", 206, slice(-8, None), "bytes 49992-49999/50000"),
        ("bytes=50000-", 416, slice(0), "bytes */50000"),
        ("lines=1-2", 200, slice(None), None),
    ],
)
def test_ranges(hub: HubServer, pushed: HfApi, wanted: str, status: int, part: slice, content_range: str | None):
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    connection.request("GET", f"/{REPO}/resolve/main/model.safetensors", headers={"Range": wanted})
    found = connection.getresponse()
    assert (found.status, found.headers["Content-Range"], found.read()) == (status, content_range, WEIGHTS[part])
    connection.close()


def test_file_system_reads_parts(hub: HubServer, pushed: HfApi):
    files = HfFileSystem(endpoint=hub.url, token=WRITER, skip_instance_cache=True)
    with files.open(f"{REPO}/model.safetensors", block_size=1000) as file:
        file.seek(20_000)
        assert file.read(10) == WEIGHTS[20_000:20_010]

"""Pushes that do not come about: success after a retry, or one sentence on how to go on; the folder is whole."""

import shlex
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hgkd_hf.hub import License, PushError, PushOptions, push_folder, push_student, push_to_hub
from hgkd_hf.hub.push import check_access, files_of

from .conftest import processor
from .server import HubServer
from .store import OTHER, READER, WRITER, Blob
from .test_push import FILES, REPO, edit_on_hub, on_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


@pytest.fixture(autouse=True)
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_of(folder).items()}


AGAIN = f"run --repo_id {REPO}"


@pytest.mark.parametrize(
    ("token", "repo_id", "said"),
    [
        (None, REPO, "the Hub asks who you are: run `hf auth login` or set HF_TOKEN"),
        ("hf_wrong", REPO, "the Hub does not accept the token"),
        (READER, REPO, "the token may not write to alice/student"),
        (WRITER, "bob/student", "the token may not write to bob/student"),
    ],
)
def test_who_may_not_push_is_told_so(hub: HubServer, run: Path, monkeypatch, token, repo_id, said):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    before = contents(run)
    with pytest.raises(PushError) as error:
        push_student(run, repo_id)
    message = str(error.value)
    assert said in message
    assert f"{run} is complete; resume with: hgkd publish {run.parent} --repo_id {repo_id}" in message
    assert "\n" not in message
    assert contents(run) == before
    assert hub.count("^PUT") == hub.count("/commit/") == 0


def test_private_repository_of_somebody_else_is_not_said_to_be_absent(hub: HubServer, run: Path):
    hub.api(OTHER).create_repo("bob/student", private=True)
    with pytest.raises(PushError, match="the token may not write to bob/student"):
        push_student(run, "bob/student")


def test_offline(hub: HubServer, run: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push_student(run, REPO)


@pytest.mark.parametrize("name", ["a b", "a/b/c", "-x", ""])
def test_impossible_name(hub: HubServer, run: Path, name: str):
    with pytest.raises(ValueError, match=r"is not a name for a repository: write user/name"):
        push_student(run, name)
    assert hub.count(".") == 0


def test_conflict_without_an_address_when_the_repository_is_created(hub: HubServer, run: Path):
    hub.fault("^POST /api/repos/create", status=409)
    with pytest.raises(PushError, match="alice/student is not visible to this token") as error:
        push_student(run, REPO)
    assert "\n" not in str(error.value)
    push_student(run, REPO)


def test_commit_conflict_is_retried_and_both_commits_stay(hub: HubServer, run: Path, monkeypatch, no_waiting):
    push_student(run, REPO)
    (run / "config.json").write_text((run / "config.json").read_text() + "\n")
    real, calls = HfApi.create_commit, []

    def meanwhile(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            calls.append(1)
            edit_on_hub(hub, on_hub(hub) + "Meanwhile\n")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", meanwhile)
    push_student(run, REPO)
    log = hub.repo(REPO).log()
    assert [commit.title for commit in log[-2:]] == ["By hand", PushOptions().message]
    assert on_hub(hub).endswith("Meanwhile\n")
    assert no_waiting == []


def test_endless_conflicts_end_in_a_sentence(hub: HubServer, run: Path, no_waiting):
    push_student(run, REPO)
    (run / "config.json").write_text("{}")
    hub.fault("/commit/", times=9, status=412)
    with pytest.raises(PushError, match="somebody else keeps committing to alice/student"):
        push_student(run, REPO)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_fault_at_the_commit_is_retried(hub: HubServer, run: Path, no_waiting, status):
    hub.fault("^POST .*/commit/", status=status)
    push_student(run, REPO)
    assert no_waiting[0] == 1
    assert "model.safetensors" in hub.repo(REPO).resolve("main").tree
    assert hub.count("^PUT") == 1  # the weights were sent once


def test_lasting_fault_is_one_sentence_and_a_second_push_finishes(hub: HubServer, run: Path, no_waiting):
    hub.fault("^POST .*/commit/", times=99, status=503)
    before = contents(run)
    with pytest.raises(PushError, match="the Hub answered 503") as error:
        push_student(run, REPO)
    assert "\n" not in str(error.value)
    assert AGAIN in str(error.value)
    assert before.keys() == contents(run).keys()
    assert len(hub.repo(REPO).log()) == 1
    hub.heal()
    hub.requests.clear()
    push_student(run, REPO)
    assert hub.count("^PUT") == 0
    assert list(hub.repo(REPO).log()[-1].changed) == FILES


def test_upload_that_is_always_cut(hub: HubServer, run: Path, no_waiting):
    hub.fault("^PUT /lfs/upload", times=99, after=100, drop=True)
    with pytest.raises(PushError, match="the connection to the Hub broke") as error:
        push_student(run, REPO)
    assert AGAIN in str(error.value)
    hub.heal()
    push_student(run, REPO)
    assert list(hub.repo(REPO).log()[-1].changed) == FILES


def test_server_dies_during_the_upload_and_comes_back(hub: HubServer, run: Path, spawn_python):
    fault = hub.fault("^PUT /lfs/upload", after=100, hang=60)
    code = "import sys; from hgkd_hf.hub import push_student; push_student(sys.argv[1], 'alice/student')"
    process = spawn_python(code, hub.env(), run)
    assert fault.fired.wait(60)
    hub.stop()
    hub.start()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert list(hub.repo(REPO).log()[-1].changed) == FILES


def test_server_that_is_down(hub: HubServer, run: Path, no_waiting):
    hub.stop()
    with pytest.raises(PushError, match="the connection to the Hub broke .*ConnectError") as error:
        push_student(run, REPO)
    assert "\n" not in str(error.value)
    hub.start()
    push_student(run, REPO)
    assert list(hub.repo(REPO).log()[-1].changed) == FILES


def test_planted_token_stops_the_push_before_the_network(hub: HubServer, run: Path):
    (run / "notes.txt").write_text(f"export HF_TOKEN={WRITER}")
    with pytest.raises(ValueError, match="notes.txt holds a token"):
        push_student(run, REPO)
    assert hub.count(".") == 0


def test_nothing_to_push(hub: HubServer, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is nothing to push"):
        push_folder(tmp_path / "absent", REPO)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"there is no .*card.json"):
        push_student(tmp_path / "bare", REPO)


def test_readme_that_is_no_text(hub: HubServer, run: Path):
    hub.api().create_repo(REPO)
    hub.repo(REPO).resolve("main").tree["README.md"] = Blob("é".encode("latin-1"))  # by git: the client would not
    with pytest.raises(ValueError, match="the README of alice/student on the Hub is not UTF-8 text: save it as UTF-8"):
        push_student(run, REPO)
    (run / "README.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="the README in .*student is not UTF-8 text"):
        push_student(run, REPO)


# -- the command that goes on -----------------------------------------------------------------------------------------

OTHER_LICENSE = License("other", "Alice's terms", "https://example.org/terms")


@pytest.mark.parametrize("name", ["student", "student-best"])
def test_it_repeats_all_that_was_asked_for(hub: HubServer, run: Path, publish, monkeypatch, name: str):
    run = run.rename(run.parent / name)
    asked = {"private": True, "gated": "manual", "revision": "try", "tag": "v1", "message": "It's done"}
    with pytest.raises(PushError) as error:
        push_student(run, REPO, PushOptions(**asked, token="hf_wrong"), OTHER_LICENSE)
    assert "hf_wrong" not in str(error.value)
    program, script, *arguments = shlex.split(str(error.value).partition("resume with: ")[2])
    assert (program, script) == ("hgkd", "publish")
    publish(*arguments)
    repo = hub.repo(REPO)
    assert (repo.private, repo.gated, repo.log("try")[-1].title) == (True, "manual", "It's done")
    assert repo.tags == {"v1": repo.resolve("try").oid}
    assert "license_name: Alice's terms" in repo.resolve("try").tree["README.md"].data.decode()


def test_a_model_without_a_folder_is_pushed_again(hub: HubServer, student, card, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PushError, match=r"the token.*What is here is complete: push it again\.$") as error:
        push_to_hub(student, REPO, processor(), card)
    assert "/tmp" not in str(error.value)


@pytest.mark.parametrize(("token", "repo_id"), [(READER, REPO), (WRITER, "bob/student")])
def test_who_may_not_create_a_repository_learns_it_beforehand(hub: HubServer, token: str, repo_id: str):
    with pytest.raises(PushError, match=f"the token may not write to {repo_id}.*; nothing was sent or changed"):
        check_access(repo_id, token)
    assert check_access(REPO, WRITER) == check_access("student", WRITER) == REPO
    assert not hub.store.repos

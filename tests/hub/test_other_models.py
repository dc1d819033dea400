"""A push over another model: it says what it would replace and what it would leave, and must be asked for."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd

from hgkd_hf.hub import License, PushError, PushOptions, Source, StudentCard, push_student

from .conftest import MIT
from .server import HubServer
from .store import WRITER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads

REPO = "alice/student"
SAID = (
    "alice/student holds another model: a push would replace config.json, model.safetensors and leave merges.txt, "
    "vocab.json; choose another --repo_id, or add --overwrite."
)


@pytest.fixture(autouse=True)
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)


@pytest.fixture
def language_model(hub: HubServer) -> None:
    """A model in `REPO` that has nothing to do with us."""
    names = ("README.md", "config.json", "model.safetensors", "merges.txt", "vocab.json")
    hub.api().create_repo(REPO)
    hub.api().create_commit(REPO, [CommitOperationAdd(name, b"theirs") for name in names], commit_message="Theirs")


def test_it_is_refused_and_said_what_would_happen(hub: HubServer, run: Path, language_model):
    hub.requests.clear()
    with pytest.raises(ValueError, match="holds another model") as error:
        push_student(run, REPO, PushOptions(gated="manual", revision="new"))
    assert str(error.value) == SAID
    assert not [hit for hit in hub.requests if hit.method not in ("GET", "HEAD")]  # neither gated nor branched
    assert hub.repo(REPO).log()[-1].title == "Theirs"
    push_student(run, REPO, PushOptions(overwrite=True))
    tree = hub.repo(REPO).resolve("main").tree
    assert tree["config.json"].data == (run / "config.json").read_bytes()
    assert tree["vocab.json"].data == b"theirs"
    (run / "config.json").write_text("{}")
    push_student(run, REPO)  # now it is ours


def test_dry_run_says_it_too(hub: HubServer, run: Path, publish, language_model, capsys):
    publish(run.parent, "--repo_id", REPO, "--dry_run")
    assert f"not as it is: {SAID}" in capsys.readouterr().out.splitlines()
    publish(run.parent, "--repo_id", REPO, "--dry_run", "--overwrite")
    lines = capsys.readouterr().out.splitlines()
    assert "replaces config.json, model.safetensors; leaves merges.txt, vocab.json" in lines
    assert hub.repo(REPO).log()[-1].title == "Theirs"
    publish(run.parent, "--repo_id", REPO, "--overwrite")
    assert hub.repo(REPO).log()[-1].title == PushOptions().message


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({}, False),
        ({"results": {"this student": {"knn_accuracy": 0.5}}, "license": License("mit")}, False),
        ({"method": "rob"}, True),
        ({"teachers": [Source("alice/other", on_hub=True, license=MIT)]}, True),
        ({"dataset": Source("alice/stripes", on_hub=True, license=MIT)}, True),
        ({"student": "ResNetForImageClassification"}, True),
    ],
)
def test_an_earlier_state_of_the_same_student_is_no_other_model(hub: HubServer, run: Path, tmp_path, change, refused):
    push_student(run, REPO)
    again = run.rename(tmp_path / "again")
    (again / ".cache" / "hgkd_hf" / "pushed.json").unlink()  # another folder, which was never pushed
    card = StudentCard.load(again / "card.json")
    for name, value in change.items():
        setattr(card, name, value)
    card.save(again / "card.json")
    (again / "config.json").write_text("{}")
    if refused:
        with pytest.raises(ValueError, match="alice/student holds another model"):
            push_student(again, REPO)
    else:
        push_student(again, REPO)
    assert len(hub.repo(REPO).log()) == (2 if refused else 3)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"method": "hgkd", "new": 1}'])
def test_a_card_that_cannot_be_read_is_of_another_model(hub: HubServer, run: Path, content):
    hub.api().create_repo(REPO)
    hub.api().create_commit(REPO, [CommitOperationAdd("card.json", content)], commit_message="Theirs")
    with pytest.raises(ValueError, match="would replace card.json and leave nothing"):
        push_student(run, REPO)


def test_what_every_repository_has_is_no_model(hub: HubServer, run: Path):
    hub.api().create_repo(REPO)
    files = [CommitOperationAdd(name, b"theirs") for name in ("README.md", "LICENSE")]
    hub.api().create_commit(REPO, files, commit_message="Theirs")
    push_student(run, REPO)


def test_many_files_are_counted(hub: HubServer, run: Path):
    hub.api().create_repo(REPO)
    files = [CommitOperationAdd(f"{name}.txt", b"theirs") for name in "abcdefgh"]
    hub.api().create_commit(REPO, files, commit_message="Theirs")
    with pytest.raises(ValueError, match="replace nothing and leave a.txt, b.txt, c.txt, d.txt and 4 more;"):
        push_student(run, REPO)


def test_a_push_that_failed_is_repeated_with_the_flag(hub: HubServer, run: Path, language_model, no_waiting):
    hub.fault("/commit/", times=99, status=503)
    with pytest.raises(PushError, match=f"--repo_id {REPO} --overwrite"):
        push_student(run, REPO, PushOptions(overwrite=True))

"""Pushing a student's folder: one commit, merged README, and what is said when it does not come about."""

import importlib
import json
import logging
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from transformers import ResNetConfig, ResNetModel

from hgkd_hf.hub import readme
from hgkd_hf.hub.export import student_image_processor
from hgkd_hf.hub.folder import push_student, push_to_hub, write_student_folder
from hgkd_hf.hub.push import PushError, PushOptions, files_of, push_folder
from hgkd_hf.hub.sources import License, Source
from hgkd_hf.hub.student_card import StudentCard

from .server import HubServer
from .store import OTHER, READER, WRITER

httpx = importlib.import_module("httpx" if huggingface_hub.__version__.startswith("1.") else "httpx2")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads

REPO, MIT = "alice/student", License("mit")
FILES = ["README.md", "card.json", "config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture
def card() -> StudentCard:
    source = Source("alice/teacher", on_hub=True, license=MIT)
    return StudentCard(name="student", method="hgkd", teacher=source, dataset=Source("alice/dots", True, None, MIT))


@pytest.fixture
def student() -> ResNetModel:
    torch.manual_seed(0)
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()


@pytest.fixture
def run(tmp_path: Path, student, card) -> Path:
    write_student_folder(student, tmp_path / "run" / "student", processor(), card)
    return tmp_path / "run" / "student"


def processor():
    return student_image_processor(32, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture(autouse=True)
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for room in ("hub.push", "hub.folder"):
        monkeypatch.setattr(logging.getLogger(f"hgkd_hf.{room}"), "propagate", True)
    return caplog


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_of(folder).items()}


def test_one_commit_with_a_card_that_loads(hub: HubServer, run: Path):
    made = push_student(run, REPO, PushOptions(message="Hello", tag="v1"))
    second = hub.repo(REPO).log()[1]
    assert (second.oid, second.title, second.changed) == (made.oid, "Hello", tuple(FILES))
    assert hub.repo(REPO).tags == {"v1": made.oid}
    assert not hub.repo(REPO).private
    card = ModelCard.load(hub.api().hf_hub_download(REPO, "README.md"))
    assert card.data.license == "mit"
    assert f'AutoModel.from_pretrained("{REPO}")' in card.text
    assert contents(run).keys() == set(FILES)


def test_second_push_commits_nothing(hub: HubServer, run: Path):
    head = push_student(run, REPO).oid
    hub.requests.clear()
    assert push_student(run, REPO).oid == head
    assert hub.count("^PUT") == hub.count("/commit/") == 0


def test_own_name_is_completed(hub: HubServer, run: Path):
    push_student(run, "mine")
    assert len(hub.repo("alice/mine").log()) == 2


def test_private_gated_and_on_a_branch(hub: HubServer, run: Path):
    push_student(run, REPO, PushOptions(private=True, gated="manual", revision="try"))
    repo = hub.repo(REPO)
    assert (repo.private, repo.gated) == (True, "manual")
    assert [len(repo.log(branch)) for branch in ("main", "try")] == [1, 2]


def test_existing_repository_keeps_its_visibility(hub: HubServer, run: Path, warnings):
    hub.api().create_repo(REPO)
    push_student(run, REPO, PushOptions(private=True))
    assert not hub.repo(REPO).private
    assert len(hub.repo(REPO).log()) == 2
    assert "alice/student exists and stays public" in warnings.text


def test_pull_request_to_somebody_elses_repository(hub: HubServer, run: Path):
    hub.api(OTHER).create_repo("bob/student")
    made = push_student(run, "bob/student", PushOptions(create_pr=True))
    assert made.pr_num == 1
    assert len(hub.repo("bob/student").log()) == 1
    assert "model.safetensors" in hub.repo("bob/student").resolve("refs/pr/1").tree


# -- people's edits -------------------------------------------------------------------------------------------------


def on_hub(hub: HubServer) -> str:
    return hub.repo(REPO).resolve("main").tree["README.md"].data.decode()


def edit_on_hub(hub: HubServer, text: str) -> None:
    hub.api().create_commit(REPO, [CommitOperationAdd("README.md", text.encode())], commit_message="By hand")


def test_readme_edited_on_the_hub_keeps_its_text(hub: HubServer, run: Path):
    push_student(run, REPO)
    edited = on_hub(hub).replace("library_name", "language: en\nlibrary_name") + "\n## Thanks\nto *Bob*\n"
    edit_on_hub(hub, edited)
    card = StudentCard.load(run / "card.json")
    card.results["this student"] = {"knn_accuracy": 0.5}
    card.save(run / "card.json")
    push_student(run, REPO)
    metadata, body = readme.split(on_hub(hub))
    assert body.endswith("\n## Thanks\nto *Bob*\n")
    assert "| this student | 0.5 |" in body
    assert metadata["language"] == "en"
    assert (run / "README.md").read_text() == on_hub(hub)


def test_readme_edited_in_the_folder_is_pushed(hub: HubServer, run: Path):
    for note in ("Mine", "Mine, better", "Mine, best"):
        text = (run / "README.md").read_text()
        (run / "README.md").write_text(text.split(readme.END)[0] + readme.END + f"\n{note}\n")
        push_student(run, REPO)
        assert on_hub(hub).endswith(f"\n{note}\n")


def test_readme_edited_in_both_places_keeps_the_hubs_and_says_so(hub: HubServer, run: Path, warnings):
    push_student(run, REPO)
    edit_on_hub(hub, on_hub(hub) + "On the Hub\n")
    (run / "README.md").write_text((run / "README.md").read_text() + "Here\n")
    push_student(run, REPO)
    assert on_hub(hub).endswith("On the Hub\n")
    assert "The README was edited on the Hub and in" in warnings.text


def test_license_set_on_the_hub_stays(hub: HubServer, run: Path):
    push_student(run, REPO)
    edit_on_hub(hub, on_hub(hub).replace("license: mit", "license: gpl-3.0"))
    push_student(run, REPO)
    assert "license: gpl-3.0" in on_hub(hub)
    assert "gpl-3.0: set in its README." in on_hub(hub)
    push_student(run, REPO, license=MIT)
    assert "mit: chosen by its publisher." in on_hub(hub)


def test_readme_that_cannot_be_read_stays(hub: HubServer, run: Path):
    push_student(run, REPO)
    tree = hub.repo(REPO).resolve("main").tree
    broken = type(tree["README.md"])(b"---\na: [\n---\nBy hand\n")
    tree["README.md"] = broken
    (run / "README.md").unlink()
    card = StudentCard.load(run / "card.json")
    card.run["steps"] = 1
    card.save(run / "card.json")
    with pytest.raises(PushError, match="refuses the metadata of the README"):
        push_student(run, REPO)


def test_without_a_license_it_is_asked_for(hub: HubServer, tmp_path, student, card):
    card.dataset = Source("dots")
    run = write_student_folder(student, tmp_path / "student", processor(), card)
    with pytest.raises(ValueError, match="the licence of dots is not known: choose a licence with --license"):
        push_student(run, REPO)
    push_student(run, REPO, license=License("apache-2.0"))
    assert "license: apache-2.0" in on_hub(hub)


# -- what goes wrong ------------------------------------------------------------------------------------------------

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
    assert f"{run} is whole; go on with: python training/publish.py {run.parent} --repo_id {repo_id}" in message
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
    with pytest.raises(ValueError, match=r"is no name for a repository: write user/name \(--repo_id\)"):
        push_student(run, name)
    assert hub.count(".") == 0


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
    code = "import sys; from hgkd_hf.hub.folder import push_student; push_student(sys.argv[1], 'alice/student')"
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


def test_plain_folder_with_a_readme(hub: HubServer, tmp_path):
    (tmp_path / "README.md").write_text(readme.compose({"license": "mit"}, "# Ours"))
    push_folder(tmp_path, REPO)
    edit_on_hub(hub, on_hub(hub) + "Theirs\n")
    push_folder(tmp_path, REPO)
    assert on_hub(hub).endswith("Theirs\n")


# -- a model --------------------------------------------------------------------------------------------------------


def test_model_without_a_run_loads_elsewhere(hub: HubServer, student, card, run_python, tmp_path):
    push_to_hub(student, REPO, processor(), card, options=PushOptions(private=True))
    code = """
import json, sys, torch
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained("alice/student", revision=sys.argv[1]).eval()
AutoImageProcessor.from_pretrained("alice/student", revision=sys.argv[1], backend="pil")
print(json.dumps(model(torch.ones(1, 3, 32, 32)).pooler_output.flatten().tolist()))
"""
    head = hub.repo(REPO).resolve("main").oid
    found = json.loads(run_python(code, hub.env(), head).stdout)
    with torch.no_grad():
        assert found == student(torch.ones(1, 3, 32, 32)).pooler_output.flatten().tolist()

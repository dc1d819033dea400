"""Pushing a student's folder: one commit, a README that is merged, never overwritten."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, ModelCard

from hgkd_hf.hub import (
    License,
    PushError,
    PushOptions,
    Source,
    StudentCard,
    push_folder,
    push_student,
    push_to_hub,
    readme,
    write_student_folder,
)
from hgkd_hf.hub.push import files_of

from .conftest import MIT, processor
from .server import HubServer
from .store import OTHER, WRITER, Blob

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads

REPO = "alice/student"
FILES = ["README.md", "card.json", "config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(autouse=True)
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)


def test_one_commit_with_a_card_that_loads(hub: HubServer, run: Path):
    made = push_student(run, REPO, PushOptions(message="Hello", tag="v1"))
    second = hub.repo(REPO).log()[1]
    assert (second.oid, second.title, second.changed) == (made.oid, "Hello", tuple(FILES))
    assert hub.repo(REPO).tags == {"v1": made.oid}
    assert not hub.repo(REPO).private
    card = ModelCard.load(hub.api().hf_hub_download(REPO, "README.md"))
    assert card.data.license == "mit"
    assert f'AutoModel.from_pretrained("{REPO}")' in card.text
    assert files_of(run).keys() == set(FILES)


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


def test_a_tag_that_others_may_have_pinned_is_not_moved(hub: HubServer, run: Path, logged):
    first = push_student(run, REPO, PushOptions(tag="v1"))
    push_student(run, REPO, PushOptions(tag="v1"))
    assert "The tag" not in logged.text
    (run / "config.json").write_text("{}")
    push_student(run, REPO, PushOptions(tag="v1"))
    assert hub.repo(REPO).tags == {"v1": first.oid}
    assert f"The tag v1 of {REPO} stays at commit {first.oid}" in logged.text


@pytest.mark.parametrize("settings", [{"gated": "auto"}, {"tag": "v1"}])
def test_a_pull_request_changes_nothing_but_files(settings):
    with pytest.raises(ValueError, match="a pull request neither gates the repository nor gets a tag"):
        PushOptions(create_pr=True, **settings)


def test_existing_repository_keeps_its_visibility(hub: HubServer, run: Path, logged):
    hub.api().create_repo(REPO)
    push_student(run, REPO, PushOptions(private=True))
    assert not hub.repo(REPO).private
    assert len(hub.repo(REPO).log()) == 2
    assert "alice/student exists and stays public" in logged.text


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


def test_readme_edited_in_the_folder_outlives_another_export(run: Path, student, card):
    text = (run / "README.md").read_text()
    (run / "README.md").write_text(text.replace("---\n", "---\nlanguage: en\n", 1) + "\nMine\n")
    card.results["this student"] = {"knn_accuracy": 0.5}
    write_student_folder(student, run, processor(), card)
    metadata, body = readme.split((run / "README.md").read_text())
    assert (metadata["language"], metadata["license"]) == ("en", "mit")
    assert body.endswith("\nMine\n")
    assert "| this student | 0.5 |" in body


def test_readme_edited_in_both_places_keeps_the_hubs_and_says_so(hub: HubServer, run: Path, logged):
    push_student(run, REPO)
    edit_on_hub(hub, on_hub(hub) + "On the Hub\n")
    (run / "README.md").write_text((run / "README.md").read_text() + "Here\n")
    push_student(run, REPO)
    assert on_hub(hub).endswith("On the Hub\n")
    assert "The README was edited on the Hub and in" in logged.text


def test_license_set_on_the_hub_stays(hub: HubServer, run: Path):
    push_student(run, REPO)
    edit_on_hub(hub, on_hub(hub).replace("license: mit", "license: gpl-3.0"))
    push_student(run, REPO)
    assert "license: gpl-3.0" in on_hub(hub)
    assert "gpl-3.0: set in its README." in on_hub(hub)
    push_student(run, REPO, license=MIT)
    assert "mit: chosen by its publisher." in on_hub(hub)


def test_readme_of_another_system_keeps_its_text_and_metadata(hub: HubServer, run: Path):
    (run / "README.md").unlink()
    hub.api().create_repo(REPO)
    text = "\ufeff---\r\nlanguage: en\r\n---\r\n# Mine\r\n\r\nA *story*\r\n"
    hub.repo(REPO).resolve("main").tree["README.md"] = Blob(text.encode())
    push_student(run, REPO)
    metadata, body = readme.split(on_hub(hub))
    assert (metadata["language"], metadata["license"]) == ("en", "mit")
    assert body.startswith("# Mine\n\nA *story*\n\n<!-- hgkd_hf: begin")


def test_a_card_that_fails_leaves_the_readme_as_it_is(hub: HubServer, run: Path, monkeypatch, logged):
    push_student(run, REPO)
    before = on_hub(hub)
    monkeypatch.setattr(StudentCard, "render", lambda *_: 1 / 0)
    (run / "config.json").write_text((run / "config.json").read_text() + "\n")
    push_student(run, REPO)
    assert hub.repo(REPO).log()[-1].changed == ("config.json",)
    assert on_hub(hub) == before
    assert "the model card could not be written (ZeroDivisionError" in logged.text


def test_readme_that_cannot_be_read_stays(hub: HubServer, run: Path):
    push_student(run, REPO)
    tree = hub.repo(REPO).resolve("main").tree
    tree["README.md"] = Blob(b"---\na: [\n---\nBy hand\n")
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


def test_plain_folder_with_a_readme(hub: HubServer, tmp_path):
    (tmp_path / "README.md").write_text(readme.compose({"license": "mit"}, "# Ours"))
    push_folder(tmp_path, REPO)
    edit_on_hub(hub, on_hub(hub) + "Theirs\n")
    push_folder(tmp_path, REPO)
    assert on_hub(hub).endswith("Theirs\n")


# -- a model --------------------------------------------------------------------------------------------------------


def test_model_without_a_run_loads_elsewhere_at_any_revision(hub: HubServer, student, card, run_python):
    with torch.no_grad():
        first = student(torch.ones(1, 3, 32, 32)).pooler_output.flatten().tolist()
        made = push_to_hub(student, REPO, processor(), card, options=PushOptions(private=True, tag="v1"))
        student.embedder.embedder.convolution.weight.mul_(2)
        second = student(torch.ones(1, 3, 32, 32)).pooler_output.flatten().tolist()
    push_to_hub(student, REPO, processor(), card)
    code = """
import json, sys, torch
from transformers import AutoImageProcessor, AutoModel
for revision in (None, "v1", sys.argv[1]):
    model = AutoModel.from_pretrained("alice/student", revision=revision).eval()
    AutoImageProcessor.from_pretrained("alice/student", revision=revision, backend="pil")
    print(json.dumps(model(torch.ones(1, 3, 32, 32)).pooler_output.flatten().tolist()))
"""
    found = [json.loads(line) for line in run_python(code, hub.env(), made.oid).stdout.splitlines()]
    assert found == [second, first, first]
    assert first != second

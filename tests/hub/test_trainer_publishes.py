"""DistillationTrainer and the Hub: at the end, at every save in the background, and when that fails."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from hgkd_hf.hub import License, PushError, Source, StudentCard, StudentPublisher, student_image_processor
from hgkd_hf.hub.machine import commit_of_package, energy
from hgkd_hf.sparse.masking import random_cell_mask
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

from .server import HubServer
from .store import READER, WRITER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads

REPO = "alice/student"


class Pictures(Dataset):
    """8 pictures, sample i with mask i."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randn(3, 64, 64, generator=generator)
        return {
            "pixel_values": pixels,
            "bool_masked_pos": random_cell_mask((4, 4), 0.6, generator),
            "labels": index % 2,
        }


@pytest.fixture(autouse=True)
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)


@pytest.fixture
def make_trainer(hgkd, tmp_path, monkeypatch):
    """A trainer of 4 steps that saves every 2, in `tmp_path/run`."""
    monkeypatch.setattr(StudentPublisher, "find_sources", known_sources)

    def make(**settings) -> DistillationTrainer:
        defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2, "disable_tqdm": True}
        defaults |= {"push_to_hub": True, "hub_model_id": REPO, "logging_steps": 1, "knn_k": 3, "report_to": "none"}
        args = DistillationArguments(output_dir=str(tmp_path / "run"), **{**defaults, **settings})
        data = Pictures()
        processor = student_image_processor(64, (0.5,) * 3, (0.5,) * 3)
        trainer = DistillationTrainer(hgkd, args, data, (data, data), processor)
        trainer.add_callback(StudentPublisher(trainer))
        return trainer

    return make


def known_sources(self, model):
    self.card.teachers = [Source("alice/teacher", on_hub=True, license=License("mit"))]
    self.card.dataset = Source("dots", license=License("mit"))


def titles(hub: HubServer, revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.repo(REPO).log(revision)[1:]]


def test_end(hub: HubServer, make_trainer, tmp_path):
    trainer = make_trainer(hub_strategy="end", hub_private_repo=True)
    trainer.evaluate(metric_key_prefix="before")
    trainer.train()
    trainer.evaluate(metric_key_prefix="after")
    assert hub.count("/commit/") == 0
    made = trainer.push_to_hub("Done", tag="v1", tags=["mine"])
    repo = hub.repo(REPO)
    assert titles(hub) == ["Done"]
    assert repo.private
    assert repo.tags == {"v1": made.oid}
    assert {
        *("README.md", "card.json", "config.json", "curves.png", "metrics.jsonl", "model.safetensors"),
        *("predictions.png", "preprocessor_config.json", "recipe.yaml", "sparse_unet/config.json"),
        *("sparse_unet/model.safetensors", "sparse_unet/preprocessor_config.json"),
    } == set(repo.log()[-1].changed)
    text = repo.resolve("main").tree["README.md"].data.decode()
    for expected in (
        "| before training |",
        "| this student |",
        "![Loss and kNN",
        "- mine",
        "| steps | 4 |",
        "16 images",
    ):
        assert expected in text, expected
    card = StudentCard.load(tmp_path / "run" / "student" / "card.json")
    assert card.results["this student"].keys() == {"knn_accuracy", "feature_rank", "feature_std"}
    assert card.run["seconds"] > 0
    assert card.versions["torch"] == torch.__version__.split("+")[0] or card.versions["torch"] == torch.__version__
    assert "max_steps" in card.changed


def test_every_save_pushes_in_the_background_and_the_checkpoint_with_it(hub: HubServer, make_trainer, tmp_path):
    trainer = make_trainer(hub_strategy="checkpoint", hub_always_push=True, save_total_limit=1, hub_revision="try")
    trainer.train()
    trainer.publisher.wait_for_push()
    assert titles(hub, "try") == ["Training in progress, step 2", "Training in progress, step 4"]
    tree = hub.repo(REPO).resolve("try").tree
    assert {
        "model.safetensors",
        "README.md",
        "last-checkpoint/model.safetensors",
        "last-checkpoint/manifest.json",
    } <= {*tree}
    kept = (tmp_path / "run" / "checkpoint-4" / "model.safetensors").read_bytes()
    assert tree["last-checkpoint/model.safetensors"].data == kept
    assert not any((tmp_path / "run" / ".push").iterdir())


def test_a_slow_hub_does_not_stall_the_training(hub: HubServer, make_trainer):
    fault = hub.fault("^PUT", hang=300)

    class AtTheLastStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                assert fault.fired.wait(60)  # the push of step 2 hangs
            if state.global_step == 4:
                seen.append(trainer.publisher.push_in_progress.is_done())

        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:  # after the publisher has left this checkpoint out, and before it waits
                hub.heal()

    seen = []
    trainer = make_trainer(hub_strategy="every_save")
    trainer.add_callback(AtTheLastStep)
    trainer.train()
    assert seen == [False]
    assert titles(hub) == ["Training in progress, step 2"]  # step 4 found the first push under way


def test_the_last_push_brings_a_checkpoint_that_was_left_out(hub: HubServer, make_trainer, tmp_path):
    hub.fault("^PUT", hang=300)

    class AtTheEnd(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:  # after the publisher has left this checkpoint out, and before it waits
                hub.heal()

    trainer = make_trainer(hub_strategy="checkpoint")
    trainer.add_callback(AtTheEnd())
    trainer.train()
    tree = hub.repo(REPO).resolve("main").tree
    assert b'"global_step": 2' in tree["last-checkpoint/trainer_state.json"].data
    trainer.push_to_hub()
    assert titles(hub) == ["Training in progress, step 2", "End of training"]
    tree = hub.repo(REPO).resolve("main").tree
    assert json.loads(tree["last-checkpoint/trainer_state.json"].data)["global_step"] == 4
    for path in (tmp_path / "run" / "checkpoint-4").glob("*.safetensors"):
        assert tree[f"last-checkpoint/{path.name}"].data == path.read_bytes(), path.name
    listed = json.loads(tree["last-checkpoint/manifest.json"].data)["files"]
    assert {f"last-checkpoint/{name}" for name in listed} | {"last-checkpoint/manifest.json"} == {
        name for name in tree if name.startswith("last-checkpoint/")
    }
    assert not any((tmp_path / "run" / ".push").iterdir())


def test_all_checkpoints_keep_their_names(hub: HubServer, make_trainer):
    trainer = make_trainer(hub_strategy="all_checkpoints", hub_always_push=True)
    trainer.train()
    tree = hub.repo(REPO).resolve("main").tree
    assert {"checkpoint-2/manifest.json", "checkpoint-4/manifest.json"} <= {*tree}


def test_saving_the_model_pushes_nothing(hub: HubServer, make_trainer):
    trainer = make_trainer(max_steps=1, save_strategy="no")
    trainer.train()
    trainer.save_model()
    assert hub.count("/commit/") == 0


def test_gated_and_in_the_background_and_as_a_pull_request(hub: HubServer, make_trainer):
    trainer = make_trainer(max_steps=1, save_strategy="no")
    trainer.train()
    trainer.push_to_hub(gated="manual")
    assert hub.repo(REPO).gated == "manual"
    trainer.publisher.card.description["note"] = "better"
    future = trainer.push_to_hub("Proposal", blocking=False, create_pr=True)
    assert future.result(60).pr_num == 1
    assert titles(hub) == ["End of training"]
    assert titles(hub, "refs/pr/1") == ["End of training", "Proposal"]


def test_what_a_killed_run_was_pushing_is_cleared_away(make_trainer, tmp_path):
    (tmp_path / "run" / ".push" / "checkpoint-2").mkdir(parents=True)
    make_trainer(push_to_hub=False, max_steps=1).train()
    assert not (tmp_path / "run" / ".push").exists()


def test_a_failing_hub_does_not_end_the_training(hub: HubServer, make_trainer, monkeypatch, logged):
    monkeypatch.setattr("hgkd_hf.hub.push.PAUSES", (0, 0, 0))
    trainer = make_trainer(hub_strategy="every_save")
    trainer.publisher.check_publishing()
    hub.fault(".", times=1000, status=503)
    trainer.train()
    trainer.publisher.wait_for_push()
    assert trainer.state.global_step == 4
    assert "Training in progress, step 2: the Hub answered 503" in logged.text
    with pytest.raises(PushError, match="the Hub answered 503"):
        trainer.push_to_hub()
    hub.heal()
    trainer.push_to_hub()
    assert titles(hub) == ["End of training"]


@pytest.mark.parametrize(("token", "said"), [(None, "hf auth login"), (READER, "may not write"), ("hf_bad", "token")])
def test_who_may_not_publish_learns_it_before_the_training(hub: HubServer, make_trainer, monkeypatch, token, said):
    hub.api().create_repo(REPO)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    trainer = make_trainer()
    with pytest.raises(PushError, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


def test_another_model_in_the_repository_is_found_before_the_training(hub: HubServer, make_trainer):
    hub.api().create_repo(REPO)
    hub.api().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=REPO)
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"replace config.json and leave nothing; choose another --hub_model_id, or"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_another_license_needs_its_name(hub: HubServer, make_trainer):
    with pytest.raises(ValueError, match="the licence `other` needs a name and a link"):
        make_trainer(license="other").train()


def test_unknown_license_is_asked_for_before_the_training(hub: HubServer, make_trainer, monkeypatch):
    monkeypatch.setattr(
        StudentPublisher, "find_sources", lambda self, model: setattr(self.card, "dataset", Source("x"))
    )
    with pytest.raises(ValueError, match="the licence of x is not known: choose the model.s licence with --license"):
        make_trainer().train()
    trainer = make_trainer(license="cc-by-4.0", max_steps=1, save_strategy="no")
    trainer.train()
    trainer.push_to_hub()
    assert "license: cc-by-4.0" in hub.repo(REPO).resolve("main").tree["README.md"].data.decode()


def test_a_failing_card_or_picture_is_a_warning(make_trainer, monkeypatch, logged):
    def fail(*args, **kwargs):
        raise RuntimeError("no paint")

    monkeypatch.setattr("hgkd_hf.hub.folder.curves_figure", fail)
    monkeypatch.setattr("hgkd_hf.hub.student_publisher.prediction_figure", fail)
    monkeypatch.setattr(StudentCard, "render", fail)
    monkeypatch.setattr(StudentCard, "save", fail)
    trainer = make_trainer(push_to_hub=False, max_steps=1)
    trainer.train()
    folder = trainer.publisher.export_student()
    assert (folder / "model.safetensors").is_file()
    for what in ("the picture of the curves", "the picture of the predictions", "the model card", "card.json"):
        assert f"{what} could not be written (RuntimeError: no paint)" in logged.text


def test_a_run_that_goes_on_keeps_time_and_first_figures(make_trainer, tmp_path):
    trainer = make_trainer(push_to_hub=False, max_steps=2)
    trainer.evaluate(metric_key_prefix="before")
    trainer.train()
    first = StudentCard.load(tmp_path / "run" / "card.json")
    assert first.run["steps"] == 2
    trainer = make_trainer(push_to_hub=False)
    trainer.train(resume_from_checkpoint=True)
    card = StudentCard.load(tmp_path / "run" / "card.json")
    assert card.run["steps"] == 4
    assert card.run["seconds"] > first.run["seconds"]
    assert card.results["before training"] == first.results["before training"]


def test_energy_is_that_of_codecarbons_file(tmp_path):
    assert energy(tmp_path / "emissions.csv") == {}
    (tmp_path / "emissions.csv").write_text(
        "timestamp,project_name,duration,emissions,energy_consumed\n2026,x,1,0.5,1.0\n2026,x,2,0.0012,0.0034\n"
    )
    assert energy(tmp_path / "emissions.csv") == {"energy_kwh": 1.0034, "co2_grams": 501.2}


def test_codecarbon_is_read_when_it_has_stopped(make_trainer, tmp_path, monkeypatch):
    class EmissionsTracker:
        """Writes its line when it stops, as codecarbon's does."""

        def __init__(self, output_dir: str):
            self.file = Path(output_dir, "emissions.csv")

        def start(self):
            pass

        def stop(self):
            self.file.write_text("emissions,energy_consumed\n0.002,0.01\n")

    codecarbon = ModuleType("codecarbon")
    codecarbon.EmissionsTracker, codecarbon.__spec__ = EmissionsTracker, ModuleSpec("codecarbon", None)
    monkeypatch.setitem(sys.modules, "codecarbon", codecarbon)
    trainer = make_trainer(report_to="codecarbon", push_to_hub=False, max_steps=1)
    trainer.train()
    text = (trainer.publisher.export_student() / "README.md").read_text()
    assert "| energy kwh | 0.01 |\n| co2 grams | 2.0 |" in text
    assert "co2_eq_emissions:\n  emissions: 2.0" in text


def test_commit_of_the_source():
    assert commit_of_package() == "" or len(commit_of_package().rstrip("+")) == 40

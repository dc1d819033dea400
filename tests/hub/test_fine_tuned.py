"""A fine-tuned model on the Hub: while it trains, at the end, and later by `hgkd publish`."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from hgkd_hf.finetuning.classification import ImageClassification
from hgkd_hf.finetuning.publisher import FineTunedPublisher
from hgkd_hf.finetuning.trainer import FineTuningArguments, FineTuningTrainer
from hgkd_hf.hub import License, Source

from .conftest import processor
from .server import HubServer
from .store import WRITER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads

REPO = "alice/classifier"


@pytest.fixture
def make_trainer(hub: HubServer, student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A trainer of 4 steps on pictures of two classes, with averaged weights and a publisher."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    student.save_pretrained(tmp_path / "student")
    processor().save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "README.md").write_text("---\nlicense: mit\n---\n")
    for split, blue in (("train", 100), ("test", 200)):
        for index in range(8):
            path = tmp_path / "dots" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (40 * (index % 2), 9 * index, blue)).save(path)
    (tmp_path / "dots" / "README.md").write_text("---\nlicense: mit\n---\n")
    task = ImageClassification(
        dataset=str(tmp_path / "dots"), model=str(tmp_path / "student"), image_size=32, eval_split="test"
    )

    def make(**settings) -> FineTuningTrainer:
        defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2, "disable_tqdm": True}
        defaults |= {"push_to_hub": True, "hub_model_id": REPO, "ema_decay": 0.9, "report_to": "none"}
        arguments = FineTuningArguments(output_dir=str(tmp_path / "run"), **{**defaults, **settings})
        data = task.training_data(0), task.evaluation_data()
        trainer = FineTuningTrainer(task.build_model(), arguments, task, *data, task.image_processor())
        trainer.add_callback(FineTunedPublisher(trainer))
        return trainer

    return make


def test_while_it_trains_and_at_the_end(hub: HubServer, make_trainer, tmp_path):
    trainer = make_trainer(hub_always_push=True)
    trainer.train()
    trainer.evaluate(metric_key_prefix="test")
    trainer.push_to_hub(tags=["mine"])
    commits = hub.repo(REPO).log()[1:]
    assert [commit.title for commit in commits] == [
        "Training in progress, step 2",
        "Training in progress, step 4",
        "End of training",
    ]
    tree = commits[-1].tree
    assert not any(name.startswith("last-checkpoint") for name in tree)
    text = tree["README.md"].data.decode()
    for told in (
        "license: mit",
        "- mine",
        "| this student |",
        "| first weights | student |",
        "accuracy: on 8 images of test",
    ):
        assert told in text, told
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name in ("config.json", "model.safetensors"):
        (pushed / name).write_bytes(tree[name].data)
    weights = AutoModelForImageClassification.from_pretrained(pushed).state_dict()
    averaged = trainer.averaged.module.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in averaged.items())


def test_what_may_not_be_published_is_said_before_the_training(hub: HubServer, make_trainer, monkeypatch):
    def unknown(self, model):
        self.card.dataset = Source("dots", license=License("cc-by-nc-4.0"))
        self.card.start = Source("student", license=License("gpl-3.0"))

    monkeypatch.setattr(FineTunedPublisher, "find_sources", unknown)
    trainer = make_trainer()
    with pytest.raises(ValueError, match="choose the model's licence with --license"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_checkpoint_with_it(hub: HubServer, make_trainer):
    trainer = make_trainer(hub_strategy="checkpoint", max_steps=2)
    trainer.train()
    trainer.push_to_hub()
    tree = hub.repo(REPO).resolve("main").tree
    assert {"last-checkpoint/manifest.json", "last-checkpoint/averaged_weights.safetensors"} <= {*tree}

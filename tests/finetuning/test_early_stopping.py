"""A fine-tuning ends when its metric gets no better, and keeps the best model, in a resumed run too."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_flags import flags
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hgkd_hf.cli.finetune import main as finetune
from hgkd_hf.finetuning.classification import ImageClassification
from hgkd_hf.finetuning.trainer import AVERAGED_WEIGHTS

SETTINGS = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
SETTINGS |= {"save_total_limit": 8, "mixup": 0, "cutmix": 0}


@pytest.fixture
def scores(monkeypatch) -> Callable[[int], None]:
    """Sets what the evaluations find, one after the other, then the last; called with where a resumed run begins."""
    found = [0.1, 0.9, 0.3, 0.2]
    left = iter(())

    def score(self, pairs):
        return {"top1_accuracy": next(left, found[-1])}

    def again(start: int = 0) -> None:
        nonlocal left
        left = iter(found[start:])

    monkeypatch.setattr(ImageClassification, "score", score)
    again()
    return again


def weights(folder: Path) -> torch.Tensor:
    return AutoModelForImageClassification.from_pretrained(folder).classifier[1].weight


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_stops_and_keeps_the_best(scores, ema_decay, rectangles, student_folder, tmp_path):
    settings = SETTINGS | {"early_stopping_patience": 2, "ema_decay": ema_decay}
    summary = finetune(flags(rectangles, student_folder, tmp_path, "image-classification", **settings))
    assert summary["steps"] == 4  # the best at 2, then two that are not
    kept = weights(tmp_path / "model")
    if ema_decay is None:
        best = weights(tmp_path / "checkpoint-2")
    else:
        best = load_file(tmp_path / "checkpoint-2" / AVERAGED_WEIGHTS)["module.classifier.1.weight"]
    assert torch.equal(kept, best)
    assert not torch.equal(kept, weights(tmp_path / "checkpoint-4"))


def test_a_resumed_run_stops_where_it_would_have(scores, rectangles, student_folder, tmp_path):
    settings = SETTINGS | {"early_stopping_patience": 2}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(flags(rectangles, student_folder, whole, "image-classification", **settings))
    stopped.mkdir()
    for name in ("checkpoint-2", "checkpoint-3", "identity.json"):
        (whole / name).rename(stopped / name)
    scores(3)
    arguments = flags(rectangles, student_folder, stopped, "image-classification", **settings)
    summary = finetune([*arguments, "--resume"])
    assert summary["steps"] == 4
    assert torch.equal(weights(stopped / "model"), weights(stopped / "checkpoint-2"))


def test_the_best_may_be_kept_without_stopping(scores, rectangles, student_folder, tmp_path):
    settings = SETTINGS | {"max_steps": 5, "load_best_model_at_end": True}
    summary = finetune(flags(rectangles, student_folder, tmp_path, "image-classification", **settings))
    assert summary["steps"] == 5
    assert torch.equal(weights(tmp_path / "model"), weights(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_split": None}, "there are no images to evaluate on: name their split with --eval_split"),
        ({"eval_strategy": None, "eval_steps": None}, "requires the save and eval strategy to match"),
        ({"early_stopping_patience": 0}, "early_stopping_patience is 0, but it must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(settings, message, rectangles, student_folder, tmp_path):
    settings = SETTINGS | {"early_stopping_patience": 2} | settings
    with pytest.raises(ValueError, match=message):
        finetune(flags(rectangles, student_folder, tmp_path, "image-classification", **settings))

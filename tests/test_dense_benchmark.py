"""benchmarks/dense.py: what it asks of the scripts, and which learning rate counts; no training is run."""

import importlib
import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hgkd_hf.cli.evaluate import EvaluationArguments
from hgkd_hf.finetuning.registry import TASKS
from hgkd_hf.finetuning.trainer import FineTuningArguments
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.training.arguments import DistillationArguments
from hgkd_hf.training.teaching import TeachSettings

PROBED = ("linear_segmentation_miou", "linear_boxes_miou")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "dense.py"
KNOWN = {
    "teach.py": (TeachSettings,),
    "distill.py": (METHODS["hgkd"], DistillationArguments),
    "evaluate.py": (EvaluationArguments,),
    "finetune.py": (TASKS["semantic-segmentation"], FineTuningArguments),
}


@pytest.fixture
def dense(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as Python does for a script
    return importlib.import_module("dense")


@pytest.fixture
def launched(dense, monkeypatch):
    """Every script that is asked for, with its settings; a probe of a decoder finds more."""
    calls = []

    def launch(script, folder, **settings):
        assert set(settings) - {"recipe"} <= {field.name for kind in KNOWN[script] for field in fields(kind)}
        calls.append((script, settings))
        folder.mkdir(parents=True, exist_ok=True)
        miou = 0.45 if str(settings.get("model")).endswith("sparse_unet") else 0.4
        (folder / "results.json").write_text(json.dumps({"metrics": dict.fromkeys(PROBED, miou)}))
        on_validation = {3e-4: 0.30, 1e-3: 0.32, 3e-3: 0.31}.get(settings.get("learning_rate"))
        mean_iou = on_validation if settings.get("eval_split") == "validation" else 0.28
        summary = {"steps": 200, "process_seconds": 90.0, "train_seconds": 70.0, "metrics": {"mean_iou": mean_iou}}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "recipe.yaml").write_text("{}")

    for module in (dense, sys.modules["downstream"]):
        monkeypatch.setattr(module, "launch_script", launch)
    return calls


FLAGS = [
    "--dataset=data/streets",
    "--image_column=photo",
    "--teacher=t",
    "--class_names",
    "road",
    "sky",
    "--seeds",
    "0",
]


def test_the_probe_with_and_without_decoder(dense, launched, tmp_path, capsys):
    assert dense.main([*FLAGS, "--rows=spark,hgkd,hgkd-decoder", f"--output_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "| spark | 40.0 | – | – | – | 200 | 90 | – |" in out  # its decoder ends at the pixels
    assert "| hgkd | 40.0 | – | – | – | 200 | 90 | – |" in out
    assert "| hgkd-decoder | 40.0 | 45.0 | – | – | 200 | 90 | – |" in out
    crops = {str(settings["crop_scale"]) for script, settings in launched if script == "distill.py"}
    assert crops == {str(list(dense.PRESET.crop_scale))}
    probes = [settings for script, settings in launched if script == "evaluate.py"]
    assert all((p["class_names"], p["image_column"], p["seed"]) == (["road", "sky"], "photo", 0) for p in probes)


def test_boxes_are_probed_too(dense, launched, tmp_path, capsys):
    assert dense.main([*FLAGS, "--probe=linear-boxes", "--rows=random", f"--output_dir={tmp_path}"]) == 0
    assert "| random | 40.0 |" in capsys.readouterr().out
    assert [settings["protocols"] for _, settings in launched] == ["linear-boxes"]


def test_the_learning_rate_is_chosen_on_validation_and_measured_on_test(dense, launched, tmp_path, capsys):
    flags = [*FLAGS, "1", "--rows=random", "--probe=none", "--finetune=finetune_camvid", f"--output_dir={tmp_path}"]
    assert dense.main(flags) == 0
    out = capsys.readouterr().out
    assert "| random | – | – | 28.0 ± 0.0 | 70 ± 0 | – |" in out
    assert "random: fine-tuned at learning rate 0.001" in out
    runs = [settings for script, settings in launched if script == "finetune.py"]
    assert [run["eval_split"] for run in runs] == ["validation"] * 3 + ["test"] * 2  # the second seed takes the rate
    assert [(run["learning_rate"], run["seed"]) for run in runs[3:]] == [(1e-3, 0), (1e-3, 1)]
    assert {run["model"] for run in runs} == {"resnet-18"}  # random weights by their own defaults
    before = len(launched)
    assert dense.main(flags) == 0
    assert len(launched) == before  # finished cells are files


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            ["--pretraining_rate=4e-3"],
            r"random-0-frozen.json was measured with learning_rate 0.001, not 0.004: move it",
        ),
        (["--probe=linear-boxes"], "random-0-frozen.json was measured with probe"),
        (["--finetune_size", "128", "160"], "random-0-finetuned.json was measured with finetune"),
        (["--learning_rates", "1e-3"], "random-0-finetuned.json was measured with learning_rates"),
    ],
)
def test_figures_of_other_settings_are_not_taken(dense, launched, tmp_path, capsys, changed, message):
    flags = [*FLAGS, "--rows=random", "--finetune=finetune_camvid", f"--output_dir={tmp_path}"]
    assert dense.main(flags) == 0
    assert dense.main([*flags, *changed]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_fine_tuning_may_be_asked_for_later(dense, launched, tmp_path):
    flags = [*FLAGS, "--rows=random", f"--output_dir={tmp_path}"]
    assert dense.main(flags) == 0
    assert dense.main([*flags, "--finetune=finetune_camvid"]) == 0
    assert [script for script, _ in launched].count("evaluate.py") == 1


def test_a_tuned_run_of_another_size_is_not_taken(dense, tmp_path):
    run = tmp_path / "finetuned" / "random-0" / "0.001"
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "recipe.yaml").write_text("image_size: [192, 256]")
    place = {"dataset": "x", "eval_split": "test", "teacher": None, "teacher_layers": None, "classifier": None}
    benchmark = dense.DenseBenchmark(dense.PRESET, **place, output_dir=tmp_path, finetune={"image_size": [128, 160]})
    with pytest.raises(ValueError, match=r"made with image_size \[192, 256\], but this benchmark wants \[128, 160\]"):
        benchmark._tuned("random", 1e-3)


def test_unknown_rows_are_named(dense, tmp_path, capsys):
    with pytest.raises(SystemExit):
        dense.main([*FLAGS, "--rows=supervised", f"--output_dir={tmp_path}"])
    assert "there is no row 'supervised'" in capsys.readouterr().err

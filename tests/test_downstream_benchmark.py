"""benchmarks/downstream.py: its table, what it takes from finished files, and a whole toy run."""

import importlib
import json
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hgkd_hf.finetuning.registry import TASKS
from hgkd_hf.finetuning.trainer import FineTuningArguments
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.training.arguments import DistillationArguments
from hgkd_hf.training.teaching import TeachSettings

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "downstream.py"


@pytest.fixture(scope="module")
def downstream():
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
    yield importlib.import_module("downstream")
    sys.path.remove(str(SCRIPT.parent))


def write_cells(folder: Path, row: str, seed: int, part: str = "x/steps", **figures) -> None:
    for kind in ("frozen", "finetuned"):
        file = folder / part / "cells" / f"{row}-{seed}-{kind}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures if kind == "frozen" else {"finetuned_accuracy": 0.5}))


def test_table_from_finished_cells_without_any_work(downstream, tmp_path, capsys):
    for seed, knn in enumerate((0.30, 0.34, 0.38)):
        write_cells(tmp_path, "spark", seed, knn_accuracy=knn, process_seconds=100 + seed, steps=200)
    out = tmp_path / "table.json"
    arguments = ["--preset=full", "--dataset=no/x", "--rows=spark", f"--output_dir={tmp_path}"]
    assert downstream.main([*arguments, f"--json={out}"]) == 0
    # Sample deviation of 0.30, 0.34, 0.38 is 0.04; of 100, 101, 102 it is 1.
    assert "| spark | 34.0 ± 4.0 | – | – | 50.0 ± 0.0 | 200 ± 0 | 101 ± 1 | – |" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["tables"]["x"]["spark"]["knn_accuracy"]["values"] == [0.30, 0.34, 0.38]
    assert result["command"].endswith(f"--json={out}")


def test_one_seed_has_no_deviation(downstream):
    table = downstream.summarise({"random": [{"knn_accuracy": 0.25}]})
    assert table["random"]["knn_accuracy"] == {"mean": 0.25, "deviation": None, "values": [0.25]}
    assert "| random | 25.0 | – | – | – | – | – | – |" in downstream.markdown(table)


def test_a_linked_run_of_another_budget_is_refused(downstream, tmp_path):
    run = tmp_path / "x" / "steps" / "spark-0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "recipe.yaml").write_text(yaml.safe_dump({"max_steps": 100, "student": "resnet-18"}))
    assert downstream.main(["--preset=full", "--dataset=x", "--rows=spark", f"--output_dir={tmp_path}"]) == 1
    benchmark = downstream.Benchmark(downstream.PRESETS["full"], "x", "test", None, [-1], None, run.parent)
    with pytest.raises(ValueError, match="made with max_steps 100, but this benchmark wants 200"):
        benchmark.pretrained("spark", 0)


def test_a_row_that_needs_a_teacher_fails_alone(downstream, tmp_path, capsys):
    write_cells(tmp_path, "spark", 0, knn_accuracy=0.3)
    arguments = ["--dataset=x", "--rows=hgkd,spark", "--seeds=0", f"--output_dir={tmp_path}"]
    assert downstream.main(arguments) == 1
    captured = capsys.readouterr()
    assert "row 'hgkd' needs a teacher: name one with --teacher" in captured.err
    assert "| spark | 30.0 |" in captured.out


def test_frozen_features_alone(downstream, tmp_path, capsys):
    write_cells(tmp_path, "spark", 0, knn_accuracy=0.3)
    arguments = ["--dataset=x", "--rows=spark", "--seeds=0", f"--output_dir={tmp_path}", "--frozen_only"]
    assert downstream.main(arguments) == 0
    assert "| spark | 30.0 | – | – | – | – | – | – |" in capsys.readouterr().out


def test_several_sets_and_budgets(downstream, tmp_path, capsys):
    for part, knn in (("x/60s", 0.3), ("x/120s", 0.4), ("y/60s", 0.5), ("y/120s", 0.6)):
        write_cells(tmp_path, "spark", 0, part, knn_accuracy=knn, process_seconds=float(part[2:-1]))
    arguments = ["--dataset", "data/x", "data/y", "--rows=spark", "--seeds=0", f"--output_dir={tmp_path}"]
    picture, out = tmp_path / "curves.png", tmp_path / "table.json"
    flags = ["--budget", "60", "120", f"--curves={picture}", f"--json={out}"]
    assert downstream.main([*arguments, *flags]) == 0
    tables = json.loads(out.read_text())["tables"]
    means = {name: table["spark"]["knn_accuracy"]["mean"] for name, table in tables.items()}
    assert means == {"x, 60 s": 0.3, "x, 120 s": 0.4, "y, 60 s": 0.5, "y, 120 s": 0.6}
    assert picture.stat().st_size > 10_000


def test_unknown_rows_are_named(downstream, tmp_path, capsys):
    with pytest.raises(SystemExit):
        downstream.main(["--dataset=x", "--rows=sparkle", f"--output_dir={tmp_path}"])
    assert "there is no row 'sparkle'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ((7.0, 17.0), 216),  # 2 s of start, 0.5 s a step
        ((5.0, 15.0), 220),
        ((20.0, 20.0), 300),  # noise: no step costs less than half of the mean
    ],
)
def test_steps_that_fit_in_a_budget(downstream, seconds, wanted):
    assert downstream.steps_within(110, (10, 30), seconds) == wanted


def test_after_how_many_students_a_cache_is_paid(downstream):
    live = {"steps": 200, "process_seconds": 100}
    cached = {"steps": 500, "process_seconds": 100, "teach_seconds": 300}
    table = downstream.summarise({"hgkd": [live], "hgkd-cached": [cached]})
    # 500 steps with the teacher would take 250 s: 150 s more.
    assert "took 300 s and saves each student 150 s of teacher: it is paid after 2.0" in downstream.payback(table)
    assert downstream.payback(downstream.summarise({"hgkd": [live]})) == ""


def test_every_rows_flags_are_known_to_the_scripts(downstream, monkeypatch, tmp_path):
    """Of all rows, with a budget and a cache; no run is started."""
    launched = set()

    def launch(script, folder, **settings):
        method = METHODS[settings.get("method", "hgkd")]
        kinds = {"teach.py": (TeachSettings,), "distill.py": (method, DistillationArguments)}
        kinds["finetune.py"] = (TASKS["image-classification"], FineTuningArguments)
        assert set(settings) <= {field.name for kind in kinds[script] for field in fields(kind)}
        launched.add(script)
        folder.mkdir(parents=True, exist_ok=True)
        summary = {"process_seconds": 1.0, "metrics": {"top1_accuracy": 0.5}}
        (folder / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(downstream, "launch_script", launch)
    monkeypatch.setattr(downstream, "load_images", lambda dataset, **_: SimpleNamespace(num_rows=100))
    for row in downstream.PRETRAINED:
        arguments = (downstream.PRESETS["full"], "x", "test", "t", [-1], "c", tmp_path / row / "60s", True, 60.0)
        downstream.Benchmark(*arguments).finetuned(row, 0)
    assert launched == {"teach.py", "distill.py", "finetune.py"}

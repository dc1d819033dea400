"""benchmarks/relatives.py: its table from finished runs, and that its rows are commands that `hgkd distill` takes."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from hgkd_hf.cli.choices import parse_method

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "relatives.py"


@pytest.fixture(scope="module")
def relatives():
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
    yield importlib.import_module("relatives")
    sys.path.remove(str(SCRIPT.parent))


def finish(folder: Path, **accuracies: float) -> None:
    folder.mkdir(parents=True)
    before = {name: value for name, value in accuracies.items() if name.startswith("before")}
    summary = {"before": before, "after": accuracies, "process_seconds": 20.4}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_table_from_finished_runs(relatives, tmp_path, capsys):
    for seed, (labels, review) in enumerate([(0.40, 0.45), (0.42, 0.41), (0.44, 0.49)]):
        finish(tmp_path / f"labels-{seed}", after_accuracy=labels, after_knn_accuracy=0.5)
        finish(tmp_path / f"reviewkd-{seed}", after_accuracy=review, after_knn_accuracy=0.6)
        finish(tmp_path / f"rcmae-{seed}", before_knn_accuracy=0.3, after_knn_accuracy=0.2)
    relatives.main(["--dataset=no", "--rows", "reviewkd", "rcmae", f"--output_dir={tmp_path}"])
    printed = capsys.readouterr().out
    # Gains of 5, -1 and 5 points: 3 on average, with a sample deviation of 3.5.
    assert "| reviewkd | top-1 | 42.0 ± 2.0 | 45.0 ± 4.0 | 3.0 ± 3.5 | 2 of 3 | 20 |" in printed
    assert "| reviewkd | kNN | 50.0 ± 0.0 | 60.0 ± 0.0 | 10.0 ± 0.0 | 3 of 3 | 20 |" in printed
    assert "| rcmae | kNN | 30.0 ± 0.0 | 20.0 ± 0.0 | -10.0 ± 0.0 | 0 of 3 | 20 |" in printed


def test_a_teacher_that_is_not_named(relatives, tmp_path):
    with pytest.raises(ValueError, match="row 'tinymim' needs a teacher: name one with --teacher"):
        relatives.main(["--dataset=no", "--rows", "tinymim", f"--output_dir={tmp_path}"])


def test_rows_are_commands(relatives):
    for row, values in relatives.ROWS.items():
        assert values["baseline"] is None or values["baseline"] in relatives.ROWS
        settings = relatives.SETTINGS | {"dataset": "images"} | values | {"bf16": False}
        settings |= {"teacher": ["a/cnn", "a/vit"] if values.get("teacher") == "classifiers" else "some/teacher"}
        words = [word for name in settings if name != "baseline" for word in relatives.flag(name, settings[name])]
        method, training = parse_method(words)
        assert method.method == values["method"], row
        assert training.max_steps == 200

"""The docs' first page shows a quickstart's own output: what the kept results give, and nothing else."""

import importlib.util
import json
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"


def benchmark():
    spec = importlib.util.spec_from_file_location("quickstart_benchmark", REPOSITORY / "benchmarks/quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_page_is_what_the_command_writes():
    module = benchmark()
    results = json.loads((DOCS / "quickstart/results.json").read_text())
    assert not results["short"]
    (block,) = module.BLOCK.findall((DOCS / "index.md").read_text())
    assert block.strip() == module.page_block(results)
    for name in module.PICTURES:
        assert (DOCS / "quickstart" / name).stat().st_size < 300_000
        assert Image.open(DOCS / "quickstart" / name).width > 400


def test_gain_is_the_smallest_of_both_metrics_and_rivals():
    rows = {
        "H-GKD": {"knn": 0.6, "few_labels": 0.5, "seconds": 9.0},
        "random student": {"knn": 0.2, "few_labels": 0.47, "seconds": None},
        "SparK (pixels alone)": {"knn": 0.5, "few_labels": 0.2, "seconds": 10.0},
    }
    module = benchmark()
    assert round(module.smallest_gain({"rows": rows}), 6) == 3.0
    other = {name: row | {"knn": row["knn"] + 0.2} for name, row in rows.items()}
    lines = module.summary([{"rows": rows}, {"rows": other}]).splitlines()
    assert lines[2] == "| H-GKD | 70.0 ± 14.1 | 50.0 ± 0.0 | 9 |"
    assert lines[3] == "| random student | 30.0 ± 14.1 | 47.0 ± 0.0 | - |"

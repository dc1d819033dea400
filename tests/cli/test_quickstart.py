"""`hgkd quickstart --short`: all parts work, offline, outside of the checkout, and it says little."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from hgkd_hf.cli.main import main

ROWS = [
    "raw pixels",
    "random student",
    "SparK (pixels alone)",
    "FitNets (plain features)",
    "H-GKD",
    "H-GKD, 60 % hidden",
    "teacher",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a short run, and what it said."""
    for package in ("mlxtend", "skimage", "sklearn", "matplotlib"):
        pytest.importorskip(package, reason="needs the extra `demo`")
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "hgkd_hf.cli.main", "quickstart", "--short", "--output_dir=runs/quickstart"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1800,
    )
    said = done.stdout.decode()  # not as text, which takes the steps of a bar for lines
    assert done.returncode == 0, said[-3000:]
    return folder / "runs/quickstart", said


def test_it_says_little(finished):
    out, said = finished
    lines = said.rstrip().split("\n")
    assert len(lines) <= 40, said
    bars = [line for line in lines if "images/s" in line]
    assert len(bars) == 5, "one of each training"
    for noise in ("Loading weights", "Writing model shards", "train_runtime", "grad_norm", "Warning", "kNN (k 20"):
        assert noise not in said
    log = (out / "run.log").read_text()
    assert "grad_norm" in log
    assert log.count("report: ") >= 4, "what each training showed is in the log"
    assert not list(out.glob("*/run.log")), "one log for all"


def test_table_and_results_agree(finished):
    out, said = finished
    results = json.loads((out / "results.json").read_text())
    assert list(results["rows"]) == ROWS
    assert (results["seed"], results["short"], results["queries"]) == (0, True, 250)
    for name, row in results["rows"].items():
        assert 0 <= row["knn"] <= 1
        assert 0 <= row["few_labels"] <= 1
        line = next(line for line in said.splitlines() if line.startswith(name + "  "))
        assert f" {100 * row['knn']:.1f} " in line
        assert (row["seconds"] is None) == (name in ("raw pixels", "random student"))
        assert (row["parameters"] is None) == (name == "raw pixels")
    students = {row["parameters"] for name, row in results["rows"].items() if name not in ("raw pixels", "teacher")}
    assert len(students) == 1, "one network, trained differently"


def test_every_part_is_there(finished):
    out, _ = finished
    for picture in ("prediction", "embedding", "curves"):
        assert (out / f"{picture}.png").stat().st_size > 5000
    for run in ("spark", "hints", "hgkd", "hgkd-masked"):
        assert AutoModel.from_pretrained(out / run / "student").config.model_type == "resnet"
        assert (out / run / "report.html").is_file()
    assert AutoModel.from_pretrained(out / "teacher").config.model_type == "vit"


def test_report_opens_with_the_pictures(finished, browser, tmp_path):
    out, _ = finished
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    problems, requests = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((out / "report.html").as_uri())
    assert page.locator("section").first.get_attribute("id") == "pictures"
    widths = page.locator("#pictures img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 3
    assert min(widths) > 400
    assert page.locator("#results tbody th").all_inner_texts() == ROWS
    assert not [url for url in requests if not url.startswith(("file:", "data:"))]
    page.screenshot(path=os.environ.get("SCREENSHOTS", str(tmp_path)) + "/quickstart.png", full_page=True)
    page.get_by_role("link", name="H-GKD", exact=True).click()
    assert page.locator("h1").inner_text() == "hgkd"
    assert problems == []
    page.close()


@pytest.mark.parametrize("held", [["thesis.tex"], ["images"], ["images", "run.log", "thesis.tex"]])
def test_a_folder_of_other_things_is_left_alone(held, tmp_path):
    for name in held:
        (tmp_path / name).touch()
    with pytest.raises(SystemExit, match=rf"holds {held[-1]}, but no earlier quickstart alone: .* --output_dir"):
        main(["quickstart", "--short", f"--output_dir={tmp_path}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == held


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("hgkd_hf.cli.quickstart.find_spec", lambda name: None if name == "skimage" else name)
    with pytest.raises(SystemExit, match=re.escape("needs skimage: pip install 'hgkd_hf[demo]'")):
        main(["quickstart", f"--output_dir={tmp_path}"])
